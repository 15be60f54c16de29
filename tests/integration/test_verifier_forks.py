"""What a fork of a worker can do to the worker, to the machine, and to the next item: nothing but answer."""

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

PRELUDE = """
import ctypes, json, os, signal, socket, sys, threading
from rlvr_verifier.scorer_forks import ScorerForks
forks = ScorerForks(1.0)
def attempt(action):
    try:
        action()
    except (OSError, RuntimeError, MemoryError) as error:
        return type(error).__name__
    return "done"
"""


def run(program: str, seconds: float = 60.0) -> "subprocess.CompletedProcess[str]":
    """A program in a process of its own, as a worker is one."""
    code = PRELUDE + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=False, env={**os.environ})


def answers(program: str) -> Any:
    done = run(program)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_fork_answers_and_leaves_nothing_behind() -> None:
    program = """
        kept = []
        def judge():
            kept.append(1)
            json.dumps = None
            return str(len(kept))
        print(json.dumps([forks.locked_in, forks.run(judge), forks.run(judge), kept, len(os.listdir("/proc/self/fd"))]))
        """
    locked_in, first, second, kept, _ = answers(program)
    assert (locked_in, first, second, kept) == (True, "1", "1", [])


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        ("lambda: open('/tmp/rlvr-fork', 'w')", "PermissionError"),
        ("lambda: open('/etc/passwd')", "PermissionError"),
        ("lambda: os.listdir('/')", "PermissionError"),
        ("lambda: socket.socket()", "PermissionError"),
        ("lambda: os.fork()", "PermissionError"),
        ("lambda: threading.Thread(target=print).start()", "RuntimeError"),
        ("lambda: os.kill(os.getppid(), 9)", "PermissionError"),
        ("lambda: os.write(4, b'x')", "OSError"),
        ("lambda: bytes(3 << 30)", "MemoryError"),
    ],
)
def test_a_fork_reaches_nothing(action: str, outcome: str) -> None:
    assert answers(f"print(json.dumps(forks.run(lambda: attempt({action}))))") == outcome


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("while True: pass", "null"),
        ("ctypes.string_at(0)", '"the scorer\'s fork ended with code -11 and 0 bytes"'),
        ("os._exit(3)", '"the scorer\'s fork ended with code 3 and 0 bytes"'),
        ("raise ValueError", '"the scorer\'s fork ended with code 70 and 0 bytes"'),
        ("return 'x' * (1 << 20)", None),
    ],
)
def test_an_end_without_an_answer_is_named_and_the_next_item_is_judged(action: str, answer: str | None) -> None:
    program = f"""
        def judge():
            {action}
        print(json.dumps([forks.run(judge), forks.run(lambda: "0")]))
        """
    said, following = answers(program)
    assert following == "0"
    assert said == answer if answer is not None else said.startswith("\"the scorer's fork ended with code")


def test_a_fork_that_was_killed_takes_its_worker_along() -> None:
    program = """
        import psutil, time
        def kill():
            while not (forked := psutil.Process().children()):
                time.sleep(0.01)
            forked[0].kill()
        threading.Thread(target=kill).start()
        forks.run(lambda: time.sleep(60) or "0")
        """
    done = run(program)
    assert done.returncode == 1
    assert "was killed" in done.stderr
