"""Kills what a run leaves behind, also when the run is killed. Run as a script, with the standard library alone.

    reaper.py MARKER < pipe     the runtime holds the other end; end of file means that it is gone, however it went

Every process of a run inherits `RLVR_RUN_MARKER=<run>/<process>/<start>` in its environment, which its own children inherit in turn, so
those that start new sessions or outlive their parents (vLLM's engine cores, worker pools) are found too. `SPT_NOENV` keeps setproctitle
from writing over the environment. Python's resource trackers are spared for a moment: once those that they serve are dead they unlink
the shared memory that would otherwise stay in /dev/shm, hundreds of megabytes for each killed engine.

What is not covered: a process that clears its environment before it forks.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence

MARKER_VARIABLE = "RLVR_RUN_MARKER"
SWEEP_SECONDS = 30.0
PAUSE_SECONDS = 0.05
TRACKER = b"multiprocessing.resource_tracker"
TRACKER_SECONDS = 3.0
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
    started, clean = time.monotonic(), 0
    while True:
        left = marked_processes(marker)
        passed = time.monotonic() - started
        clean = 0 if left else clean + 1
        if clean == CLEAN_PASSES or passed > timeout_seconds:
            return left
        for pid in left:
            if passed > TRACKER_SECONDS or not _is_tracker(pid):
                _kill(pid)
        time.sleep(PAUSE_SECONDS)


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return TRACKER in file.read()
    except OSError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: Sequence[str]) -> int:
    """Waits for the runtime's end, then sweeps."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        continue
    return 1 if sweep(arguments[0]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
