"""One child process: start it marked and tied to the runtime, wait for it, stop it with all that it started, quote its last words.

Output goes to the child's log file, which goes on over restarts. What a child leaves running is swept by marker (`reaper`) once it ended.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlvr_operator.last_words import last_words
from rlvr_operator.local import launch, reaper

TAIL_BYTES = 16_384
MAX_QUOTED_CHARACTERS = 1_000


@dataclass(frozen=True)
class ChildSpec:
    """What to start."""

    name: str
    """Unique in the run."""
    command: tuple[str, ...]
    env: Mapping[str, str]
    """The whole environment, but for the marker."""
    readiness_url: str
    """The child is ready when GET answers 200."""
    log_file: Path
    work_dir: Path


class Child:
    """A started process."""

    def __init__(self, spec: ChildSpec, marker: str, process: asyncio.subprocess.Process, log_offset: int) -> None:
        self.spec = spec
        self._marker = marker
        self._process = process
        self._log_offset = log_offset

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Waits for its end and sweeps what it left; returns the exit code, negative for a signal."""
        code = await self._process.wait()
        await asyncio.to_thread(reaper.sweep, self._marker)
        return code

    def kill(self) -> None:
        """SIGKILL; `wait` afterwards."""
        self._signal(signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> int:
        """SIGTERM, SIGKILL after `grace_seconds`; returns the exit code."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(self._process.wait())), grace_seconds)
        except TimeoutError:
            self.kill()
        return await self.wait()

    def last_line(self) -> str:
        """What this start of the process said last, without control characters; empty: it wrote nothing."""
        try:
            with self.spec.log_file.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_offset, end - TAIL_BYTES))
                return last_words(file.read().decode(errors="replace"), MAX_QUOTED_CHARACTERS)
        except OSError:
            return ""

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                return


async def start_child(spec: ChildSpec, run_marker: str, number: int) -> Child:
    """Starts `spec` for the `number`-th time in this run.

    Call it from the main thread only: the kernel ties the child to the thread that forks it.

    Raises:
        OSError: the log or the work folder cannot be written, or the machine is out of processes.
    """
    marker = f"{run_marker}/{spec.name}/{number}"
    spec.work_dir.mkdir(parents=True, exist_ok=True)
    with spec.log_file.open("ab") as log:
        log.write(f"--- {marker}: {' '.join(spec.command)}\n".encode())
        log.flush()
        offset = log.tell()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *spec.command,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=asyncio.subprocess.STDOUT, cwd=spec.work_dir, start_new_session=True,
            env={**spec.env, reaper.MARKER_VARIABLE: f"{marker}/", "SPT_NOENV": "1"},
        )  # fmt: skip
    return Child(spec, f"{marker}/", process, offset)
