"""Many coroutines at once: results in order, and nobody left behind by a failure."""

import asyncio

import pytest

from rlvr_trainer.gathering import gather_all


async def answer(number, turns):
    for _ in range(turns):
        await asyncio.sleep(0)
    return number


def test_results_come_in_the_order_of_the_coroutines():
    assert asyncio.run(gather_all(answer(number, 5 - number) for number in range(5))) == [0, 1, 2, 3, 4]
    assert asyncio.run(gather_all([])) == []


def test_a_failure_is_raised_as_it_is_and_only_once_the_others_have_ended():
    ended = []

    async def hang():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("hang")

    async def fail():
        await asyncio.sleep(0)
        raise LookupError("no such thing")

    async def scenario():
        with pytest.raises(LookupError, match="no such thing"):
            await gather_all([hang(), gather_all([fail(), hang()])])
        assert ended == ["hang", "hang"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_cancelled_call_cancels_them():
    async def scenario():
        call = asyncio.ensure_future(gather_all([asyncio.Event().wait()]))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
