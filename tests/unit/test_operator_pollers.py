"""The pollers, over HTTP with learners that answer, refuse, hang, or say too much."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from rlvr_api.status import Progress
from rlvr_operator import pollers
from rlvr_operator.pollers import Pollers, Target

HOST = "127.0.0.1"


def key(number):
    return "research", f"job-{number}"


def progress(step):
    return {"stage": "climb", "stageIndex": 0, "stages": 1, "step": step, "steps": 20, "lastUpdated": "2026-05-04T09:00:00Z"}


class Learner:
    """The status endpoint of every learner here."""

    def __init__(self):
        self.step, self.asked, self.told, self.answer = 1, 0, [], None

    async def status(self, _request):
        self.asked += 1
        return web.json_response(progress(self.step)) if self.answer is None else await self.answer()

    async def engines(self, request):
        self.told.append(await request.json())
        return web.Response()


@asynccontextmanager
async def polling(monkeypatch, targets, learner):
    """Pollers at work, and a learner that they reach; yields them and how often each job had news."""
    app = web.Application()
    app.add_routes([web.get("/status", learner.status), web.put("/engines", learner.engines)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    monkeypatch.setattr(pollers, "LEARNER_STATUS_PORT", runner.addresses[0][1])
    monkeypatch.setattr(pollers, "TURN_SECONDS", 0.02)
    news = Counter()
    asks = Pollers(lambda: targets, lambda key: news.update([key]))
    running = asyncio.create_task(asks.run())
    try:
        yield asks, news
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.cleanup()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - bounded by the deadline
            await asyncio.sleep(0.01)


def test_a_learner_is_heard_told_of_engines_and_its_job_looked_at_when_there_is_news(monkeypatch):
    monkeypatch.setattr(pollers, "POLL_SECONDS", 0.02)
    learner, target = Learner(), Target("uid", HOST, {"rollout-0": "http://engine:8000"})

    async def scenario():
        async with polling(monkeypatch, {key(0): target}, learner) as (asks, news):
            await until(lambda: learner.asked >= 4)
            assert news == {key(0): 1}, "the same again is no news"
            learner.step = 2
            await until(lambda: news[key(0)] == 2)
            found, seconds = asks.progress(key(0), "uid")
            assert found == Progress.model_validate(progress(2))
            assert seconds >= 0
            assert asks.progress(key(0), "another") == (None, None)
            assert learner.told[0] == {"urls": {"rollout-0": "http://engine:8000"}}

    asyncio.run(scenario())


def test_many_jobs_take_turns_and_no_more_are_asked_than_may_be(monkeypatch):
    monkeypatch.setattr(pollers, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(pollers, "JOBS_PER_SECOND", 100)
    targets = {key(number): Target(f"uid-{number}", HOST, {}) for number in range(10)}
    asks = Pollers(lambda: targets, lambda _key: None)
    monkeypatch.setattr(pollers, "TURN_SECONDS", 0.03)
    turns = []
    for _ in range(10):
        turn = asks._turn(targets, {})
        assert len(turn) == 3
        for each in turn:
            asks._due[targets[each].learner_uid] = pollers.time.monotonic()
        turns += turn
    assert max(Counter(turns).values()) - min(Counter(turns).values()) <= 1


@pytest.mark.parametrize("body", [b"not JSON", b" " * (pollers.MAX_BODY_BYTES + 1), b"{}"])
def test_what_a_learner_should_not_say_is_no_answer_and_it_is_asked_less_and_less(monkeypatch, body):
    learner = Learner()

    async def nonsense():
        return web.Response(body=body)

    learner.answer = nonsense
    monkeypatch.setattr(pollers, "POLL_SECONDS", 0.01)

    async def scenario():
        async with polling(monkeypatch, {key(0): Target("uid", HOST, {})}, learner) as (asks, news):
            await until(lambda: learner.asked >= 3)
            assert asks.progress(key(0), "uid") == (None, None)
            assert not news
            assert asks._failures["uid"] >= 2

    asyncio.run(scenario())


def test_one_that_hangs_keeps_nobody_waiting_and_a_new_pod_is_asked_at_once(monkeypatch):
    monkeypatch.setattr(pollers, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(pollers, "POLL_SECONDS", 0.02)
    learner, forever, targets = Learner(), asyncio.Event(), {key(0): Target("hangs", HOST, {})}

    async def hang():
        await forever.wait()
        return web.Response()

    async def scenario():
        learner.answer = hang
        async with polling(monkeypatch, targets, learner) as (asks, news):
            await until(lambda: learner.asked == 1)
            learner.answer = None
            targets[key(1)] = Target("answers", HOST, {})
            await until(lambda: news[key(1)] == 1)
            await until(lambda: asks._failures["hangs"] == 1)
            targets[key(0)] = Target("reborn", HOST, {})
            await until(lambda: news[key(0)] == 1)
            await until(lambda: "hangs" not in asks._due)

    asyncio.run(scenario())
