"""Scorers that wait for the sandbox: as many threads as there are slots, and a bounded queue before them."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from rlvr_verifier.environments.base import Score
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.pool import QUEUED_ITEMS_PER_WORKER, PoolBusyError
from rlvr_verifier.sandbox.pool import Sandbox
from rlvr_verifier.sandbox.probe import ATTACKS, Level


class SandboxedScorers:
    """The sandbox of a service, and the threads that use it."""

    def __init__(self, sandbox: Sandbox, slots: int) -> None:
        self._sandbox, self._slots = sandbox, slots
        self._threads = ThreadPoolExecutor(slots, "sandbox")
        self._waiting = 0

    @property
    def level(self) -> Level:
        """As measured at the start."""
        return self._sandbox.level

    @property
    def status(self) -> Mapping[str, object]:
        """Level, attacks that succeed, and whether code runs in a container of its own; as measured at the start."""
        return {
            "level": self._sandbox.level.value,
            "open": sorted(self._sandbox.report.open),
            "blocked": sorted(set(ATTACKS) - self._sandbox.report.open),
            "separate": self._sandbox.is_separate,
        }

    def publish(self, instruments: Instruments) -> None:
        """Set the metrics that say what the sandbox keeps out."""
        instruments.sandbox_level.set(self._sandbox.level.rank)
        for attack in ATTACKS:
            instruments.sandbox_blocked.labels(attack).set(attack not in self._sandbox.report.open)

    async def run(self, score: Callable[[], Score], begin: Callable[[], None]) -> Score:
        """Call a scorer in a thread.

        Args:
            begin: called there, just before.

        Raises:
            PoolBusyError: too many items are waiting.
            SandboxError: no slot starts.
        """
        if self._waiting >= QUEUED_ITEMS_PER_WORKER * self._slots:
            raise PoolBusyError(f"{self._waiting} items are waiting for {self._slots} slots of the sandbox; try again later")

        def begin_and_score() -> Score:
            begin()
            return score()

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, begin_and_score)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the sandbox; threads that wait for it notice."""
        self._sandbox.close()
        self._threads.shutdown(cancel_futures=True)
