"""Where slots come from: children of the service, or a sandbox of its own at the other end of a Unix socket."""

import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from rlvr_verifier.sandbox.isolation import find_isolation
from rlvr_verifier.sandbox.probe import ProbeReport, probe
from rlvr_verifier.sandbox.slot import START_SECONDS, Slot, SlotLostError, receive

RETRY_SECONDS = 0.2


class SlotSource(Protocol):
    """Starts slots, and says what they keep out."""

    def start(self) -> Slot:
        """A new slot.

        Raises:
            SlotLostError, OSError: it does not start.
        """
        ...

    def measure(self, slot: Slot) -> ProbeReport:
        """What a slot of this source keeps out.

        Raises:
            SlotLostError: the slot was lost meanwhile.
        """
        ...


class ChildSlots:
    """Zygotes that are children of this process, for local runs: the same user, and the same memory.

    Args:
        levels: that environments need.
    """

    def __init__(self, protected: bool = True, languages: Sequence[str] = (), levels: Collection[str] = ()) -> None:
        self._protected, self._languages = protected, languages
        self._isolation, self._faults = find_isolation(levels)

    def start(self) -> Slot:
        """A new child."""
        return Slot.start(self._protected, self._languages, self._isolation)

    def measure(self, slot: Slot) -> ProbeReport:
        """Attacks from inside the slot."""
        return replace(probe(slot), faults=self._faults)


class HostedSlots:
    """Zygotes of a `host` that listens on a Unix socket. A host that is not there, as while its container starts, is waited for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._report: ProbeReport | None = None

    def start(self) -> Slot:
        """A new connection, and behind it a zygote."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                control.settimeout(START_SECONDS)
                control.connect(str(self._path))
                self._accept(_read_report(control, deadline))
                return Slot(control)
            except (OSError, SlotLostError) as error:
                control.close()
                if time.monotonic() >= deadline:
                    raise SlotLostError(
                        f"no sandbox answers on {self._path} ({error}); look at the pod's container named sandbox"
                    ) from error
                time.sleep(RETRY_SECONDS)

    def measure(self, slot: Slot) -> ProbeReport:
        """As the host measured at its own start, before it ran anything else."""
        assert self._report is not None
        return self._report

    def _accept(self, report: ProbeReport) -> None:
        """A host that was restarted has measured again; environments were opened for what the first one kept out."""
        if self._report is not None and report.open - self._report.open:
            raise SlotLostError(f"the sandbox keeps out less than before: {', '.join(sorted(report.open - self._report.open))}")
        self._report = report


def _read_report(control: socket.socket, deadline: float) -> ProbeReport:
    hello = receive(control, deadline)
    names, weak, faults = hello.get("open"), hello.get("weak", {}), hello.get("faults", [])
    if not isinstance(names, list) or not isinstance(weak, dict) or not isinstance(faults, list):
        raise SlotLostError("the sandbox does not say what it keeps out")
    more = {str(name): frozenset(map(str, attacks)) for name, attacks in weak.items()}
    return ProbeReport(frozenset(map(str, names)), more, tuple(map(str, faults)))
