"""`rlvr run` as a person starts it, and its learner as a test looks at it and kills it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil


class LocalRun:
    """A job that `rlvr run` has been told to run; its output is kept, and nothing of it is left after the block."""

    def __init__(self, job: Path) -> None:
        self.folder = job.parent / "runs" / job.stem
        command = [sys.executable, "-m", "rlvr_api", "run", str(job), "--runs-dir", str(self.folder.parent), "--plain"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __enter__(self) -> "LocalRun":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def finish(self, seconds: float) -> tuple[int, str]:
        """Exit code and output, once it has ended."""
        output, _ = self._process.communicate(timeout=seconds)
        return self._process.returncode, output

    def learner(self) -> psutil.Process | None:
        """The learner of the attempt that is at work."""
        assert self._process.poll() is None, self._process.communicate()[0]
        children = psutil.Process(self._process.pid).children(recursive=True)
        return next((child for child in children if "rlvr_trainer" in _of(child, "cmdline", [])), None)

    def progress(self) -> dict[str, Any] | None:
        """What the learner says of itself now; None while there is none that answers."""
        learner = self.learner()
        port = _of(learner, "environ", {}).get("RLVR_STATUS_PORT") if learner is not None else None
        try:
            return dict(httpx.get(f"http://127.0.0.1:{port}/status", timeout=5).json(), pid=learner.pid) if port and learner else None
        except httpx.HTTPError:
            return None


def kill(pid: int) -> None:
    """As the kernel does when memory runs out."""
    os.kill(pid, signal.SIGKILL)


def _of(process: psutil.Process, what: str, otherwise: Any) -> Any:
    try:
        return getattr(process, what)()
    except psutil.NoSuchProcess:
        return otherwise
