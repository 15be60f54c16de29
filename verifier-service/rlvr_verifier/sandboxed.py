"""The sandbox of a job, and scorers that wait for it: as many threads as there are slots."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rlvr_api.spec import RLVRJobSpec
from rlvr_verifier.environments.base import Score
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.sandbox.pool import Sandbox
from rlvr_verifier.sandbox.probe import ATTACKS, Level
from rlvr_verifier.sandbox.source import ChildSlots, HostedSlots
from rlvr_verifier.threads import ScorerThreads


def start_sandbox(spec: RLVRJobSpec, slots: int, socket: str | None = None) -> Sandbox | None:
    """The sandbox of a job; None for one that runs no code.

    Args:
        socket: of a sandbox of its own; None: slots are children of this process.

    Raises:
        SandboxError: it does not start.
    """
    if not spec.runs_code:
        return None
    source = ChildSlots(languages=spec.languages, levels=spec.sandbox_levels) if socket is None else HostedSlots(Path(socket))
    return Sandbox(slots, source)


class SandboxedScorers:
    """The sandbox of a service, and the threads that use it."""

    def __init__(self, sandbox: Sandbox, slots: int) -> None:
        self._sandbox = sandbox
        self._threads = ScorerThreads("sandbox", slots, "slots of the sandbox")

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
        return await self._threads.run(score, begin)

    def close(self) -> None:
        """End the sandbox; threads that wait for it notice."""
        self._sandbox.close()
        self._threads.close()
