"""Kills what a run leaves behind, also when the run is killed. Run as a script, with the standard library alone.

    reaper.py MARKER < pipe     the runtime holds the other end; end of file means that it is gone, however it went

Every process of a run inherits `RLVR_RUN_MARKER=<run>/<process>/<start>` in its environment, which its own children inherit in turn, so
those that start new sessions or outlive their parents (vLLM's engine cores, worker pools) are found too. `SPT_NOENV` keeps setproctitle
from writing over the environment. What is not covered: a process that clears its environment before it forks.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence

MARKER_VARIABLE = "RLVR_RUN_MARKER"
SWEEP_SECONDS = 30.0
PAUSE_SECONDS = 0.05
CLEAN_PASSES = 2
"""Passes in a row that must find nothing: a fork may hide behind the pass that looked at its parent."""


def marked_processes(marker: str) -> list[int]:
    """Ids of the living processes whose marker begins with `marker`; those of other users cannot be read and are not ours."""
    needle = f"{MARKER_VARIABLE}={marker}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue
        if environment.startswith(needle) or b"\0" + needle in environment:
            found.append(int(entry))
    return found


def sweep(marker: str, timeout_seconds: float = SWEEP_SECONDS) -> list[int]:
    """Kills every process whose marker begins with `marker`, until none is left; returns those that outlived the time-out."""
    deadline, clean = time.monotonic() + timeout_seconds, 0
    while True:
        left = marked_processes(marker)
        clean = 0 if left else clean + 1
        if clean == CLEAN_PASSES or time.monotonic() > deadline:
            return left
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(PAUSE_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """Waits for the runtime's end, then sweeps."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        continue
    return 1 if sweep(arguments[0]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
