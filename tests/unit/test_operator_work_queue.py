"""The work queue: never two looks at a key at once, and nothing that was asked for is lost."""

import asyncio
import random

import pytest

from rlvr_operator import work_queue
from rlvr_operator.work_queue import WorkQueue

KEYS = [("research", f"job-{n}") for n in range(5)]


def test_a_key_waits_once_and_the_oldest_goes_first():
    async def scenario():
        queue = WorkQueue()
        for key in (KEYS[0], KEYS[1], KEYS[0]):
            queue.add(key)
        assert len(queue) == 2
        assert [await queue.get(), await queue.get()] == KEYS[:2]

    asyncio.run(scenario())


def test_many_workers_never_look_at_a_key_twice_at_once_and_see_its_last_change():
    """Each change is followed by a look that began after it."""

    async def scenario():
        queue, rng, in_work, changed, seen = WorkQueue(), random.Random(0), set(), dict.fromkeys(KEYS, 0), dict.fromkeys(KEYS, 0)

        async def work():
            while True:
                key = await queue.get()
                assert key not in in_work
                in_work.add(key)
                version = changed[key]
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                seen[key] = version
                in_work.discard(key)
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(4)]
        for _ in range(3000):
            key = rng.choice(KEYS)
            changed[key] += 1
            queue.add(key)
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        for _ in range(10_000):
            if not len(queue) and not in_work:
                break
            await asyncio.sleep(0)
        for worker in workers:
            worker.cancel()
        ended = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        assert seen == changed
        assert queue.oldest_seconds() == 0

    asyncio.run(scenario())


def test_an_earlier_appointment_stays_and_a_look_cancels_it():
    async def scenario():
        queue, loop = WorkQueue(), asyncio.get_running_loop()
        began = loop.time()
        queue.add_after(KEYS[0], 60)
        queue.add_after(KEYS[0], 0.01)
        queue.add_after(KEYS[0], 60)
        async with asyncio.timeout(5):
            assert await queue.get() == KEYS[0]
        assert loop.time() - began >= 0.009
        queue.done(KEYS[0])
        queue.add_after(KEYS[0], 0.01)
        queue.add(KEYS[0])
        await queue.get()
        queue.done(KEYS[0])
        await asyncio.sleep(0.03)
        assert len(queue) == 0

    asyncio.run(scenario())


def test_news_goes_before_routine_however_much_of_it_waits():
    async def scenario():
        queue, routine = WorkQueue(), [("research", f"settled-{n}") for n in range(1000)]
        for key in routine:
            queue.add(key, is_routine=True)
        for key in KEYS:
            queue.add(key)
        queue.add(routine[500])
        assert [await queue.get() for _ in range(6)] == [*KEYS, routine[500]]
        queue.add(KEYS[0], is_routine=True)
        queue.add(KEYS[0])
        queue.add(KEYS[0], is_routine=True)
        queue.done(KEYS[0])
        assert await queue.get() == KEYS[0], "routine does not make old what was new"
        assert await queue.get() == routine[0]

    asyncio.run(scenario())


def test_routine_is_not_kept_waiting_for_ever():
    async def scenario():
        queue, looked_at = WorkQueue(), 0
        queue.add(("research", "settled"), is_routine=True)
        for key in KEYS:
            queue.add(key)
        while (key := await queue.get()) in KEYS:
            queue.done(key)
            queue.add(key)
            looked_at += 1
        assert looked_at == work_queue.FRESH_IN_A_ROW

    asyncio.run(scenario())


def test_back_off_doubles_to_a_bound_and_starts_anew_when_a_key_is_well(monkeypatch):
    monkeypatch.setattr(work_queue.random, "random", lambda: 0.5)

    async def scenario():
        queue = WorkQueue()
        delays = [queue.retry(KEYS[0]) for _ in range(30)]
        assert delays[:4] == pytest.approx([0.25, 0.5, 1, 2])
        assert delays[-1] == work_queue.MAXIMUM_SECONDS
        assert queue.retry(KEYS[1], at_least_seconds=7) == 7
        queue.forget(KEYS[0])
        assert queue.retry(KEYS[0]) == pytest.approx(0.25)

    asyncio.run(scenario())
