"""Many coroutines at once, of which none outlives the call.

`asyncio.gather` leaves the others running when one fails: they would go on asking through clients that their owner is closing.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


async def gather_all(coroutines: Iterable[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """Their results, in their order; the first failure cancels the others, and is raised as it is once they have ended."""
    running: list[asyncio.Task[ResultT]] = []
    try:
        async with asyncio.TaskGroup() as group:
            running.extend(group.create_task(coroutine) for coroutine in coroutines)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in running]
