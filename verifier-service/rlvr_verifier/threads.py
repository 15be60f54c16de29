"""Scorers that wait for something else than a processor: so many threads, and a bounded queue before them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rlvr_verifier.environments.base import Score
from rlvr_verifier.pool import QUEUED_ITEMS_PER_WORKER, PoolBusyError


class ScorerThreads:
    """Threads of one kind of scorer.

    Args:
        waits_for: in words, for a message: what they use.
    """

    def __init__(self, name: str, count: int, waits_for: str) -> None:
        self._count, self._waits_for = count, waits_for
        self._threads = ThreadPoolExecutor(count, name)
        self._waiting = 0

    async def run(self, score: Callable[[], Score], begin: Callable[[], None]) -> Score:
        """Call a scorer in a thread.

        Args:
            begin: called there, just before.

        Raises:
            PoolBusyError: too many items are waiting.
        """
        if self._waiting >= QUEUED_ITEMS_PER_WORKER * self._count:
            raise PoolBusyError(f"{self._waiting} items are waiting for {self._count} {self._waits_for}; try again later")

        def begin_and_score() -> Score:
            begin()
            return score()

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, begin_and_score)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Forget what waits, and wait for what is under way."""
        self._threads.shutdown(cancel_futures=True)
