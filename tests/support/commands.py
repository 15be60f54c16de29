"""Commands and waits that tests of several parts share: every one is bounded, and says what it ran or waited for when it fails."""

import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any


def run(*command: Any, text: str | None = None, timeout: float = 120, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; with `check` it must succeed."""
    ended = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or ended.returncode == 0, f"{' '.join(map(str, command))}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    return ended


def kubectl(*arguments: Any, **options: Any) -> str:
    """What kubectl prints; `options` as those of `run`."""
    return run("kubectl", *arguments, **options).stdout


def wait_for(condition: Callable[[], Any], seconds: float, what: Any, every: float = 0.1) -> Any:
    """The first true value of `condition`, within a deadline; `what` is a text, or makes one."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(every)
    return value


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
