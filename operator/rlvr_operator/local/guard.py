"""Keeps a reaper at hand: if the runtime is killed, the reaper reads end of file and kills every process of the run; if the reaper is
killed, another takes its place. Both at once leaves the direct children to the kernel's parent-death signal."""

import asyncio
import subprocess
import sys
from contextlib import suppress

from rlvr_operator.local import reaper

CHECK_SECONDS = 0.5
END_SECONDS = reaper.SWEEP_SECONDS + 10.0


class Guard:
    """The reaper of one run."""

    def __init__(self, run_marker: str) -> None:
        self._run_marker = run_marker
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Process id of the reaper now at hand."""
        return self._process.pid

    async def keep(self) -> None:
        """Replaces a reaper that died, until cancelled."""
        while True:
            if self._process.poll() is not None:
                self._release()
                self._process = self._start()
            await asyncio.sleep(CHECK_SECONDS)

    async def close(self) -> None:
        """Lets the reaper sweep once more and end; returns when no process of the run is left, or none that can be killed."""
        self._release()
        with suppress(subprocess.TimeoutExpired):  # stuck in the kernel; the next run sweeps again
            await asyncio.to_thread(self._process.wait, END_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, f"{self._run_marker}/"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _release(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
