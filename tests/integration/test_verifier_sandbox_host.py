"""The sandbox as a process of its own at the other end of a Unix socket, as in a pod; as another user, where the test may be one."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import run, wait_for
from sandbox_calls import call

from rlvr_verifier.sandbox import source
from rlvr_verifier.sandbox.canonical import encode
from rlvr_verifier.sandbox.pool import ItemLostError, Sandbox, SandboxError
from rlvr_verifier.sandbox.probe import Level
from rlvr_verifier.sandbox.protocol import LENGTH
from rlvr_verifier.sandbox.slot import Ending, Item
from rlvr_verifier.sandbox.source import HostedSlots

DEADLINE_SECONDS = 30.0
OTHER_USER = 10002
SOURCES = Path(source.__file__).parents[2]


class Host:
    """A host, run by another user where this test may become one: root hides defects, since nothing is refused to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.python, self.user = sys.executable, None
        if os.geteuid() == 0 and _is_open_to_all(SOURCES):
            # This interpreter may be in root's own folder; the slots need the standard library alone.
            self.python = next((path for path in (sys.executable, "/usr/bin/python3") if _is_open_to_all(Path(path).resolve())), "")
            self.user = OTHER_USER if self.python and _version_of(self.python) >= (3, 11) else None
        if self.user is None:
            self.python = sys.executable
        else:
            os.chown(folder, self.user, os.getgid())
        os.chmod(folder, 0o2770)
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it, and wait until it listens."""
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [self.python, "-m", "rlvr_verifier.sandbox.host", "--socket", str(self.path)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES), "PYTHONDONTWRITEBYTECODE": "1"},
            user=self.user, group=self.user, extra_groups=None if self.user is None else [os.getgid()],
        )  # fmt: skip
        wait_for(self.path.exists, DEADLINE_SECONDS, "the sandbox to listen")
        return self.process

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(DEADLINE_SECONDS) == 0


def _is_open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)


def _version_of(python: str) -> tuple[int, ...]:
    done = run(python, "-c", "import sys; print(*sys.version_info[:2])")
    return tuple(map(int, done.stdout.split()))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("s")
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o711)
    made = Host(folder)
    yield made
    made.stop()


@pytest.fixture
def sandbox(host: Host) -> Iterator[Sandbox]:
    made = Sandbox(1, HostedSlots(host.path))
    yield made
    made.close()


def test_the_level_is_what_the_host_measured(sandbox: Sandbox) -> None:
    assert sandbox.level is Level.L1
    assert sandbox.report.open == {"look", "share_user"}
    assert sandbox.is_separate


def test_items_run_as_the_host_s_user_and_see_nothing_of_the_service(sandbox: Sandbox, host: Host) -> None:
    code = "import os\ndef f(x): return [os.getuid(), sorted(os.environ), x]"
    user = os.getuid() if host.user is None else host.user
    assert call(sandbox, code, 7) == [encode([user, ["LC_ALL", "PYTHONHASHSEED", "TZ"], 7])]


def test_the_socket_is_for_its_group_alone(host: Host) -> None:
    assert stat.S_IMODE(host.path.stat().st_mode) == 0o770


def test_programs_time_outs_and_endless_output_are_as_in_a_child(sandbox: Sandbox) -> None:
    run = sandbox.run(Item("import sys\nprint(sum(map(int, sys.stdin)))", stdin="1\n2\n"))
    assert (run.ending, run.output) == (Ending.EXITED, b"3\n")
    assert sandbox.run(Item("while True: pass", stdin="", seconds=0.5)).ending is Ending.TIMEOUT
    assert sandbox.run(Item("while True: print('x' * 1000)", stdin="")).ending is Ending.OVERFLOW
    assert call(sandbox, "def f(x): return x", 1) == ["i1"]


def test_closing_ends_the_zygotes_of_this_service_and_the_host_goes_on(host: Host) -> None:
    made = Sandbox(1, HostedSlots(host.path))
    (slot,) = made._live
    zygote = psutil.Process(slot.pid)
    runner = threading.Thread(target=_expect_loss, args=(made,))
    runner.start()
    wait_for(zygote.children, DEADLINE_SECONDS, "the item to run")
    items = zygote.children()
    made.close()
    runner.join(DEADLINE_SECONDS)
    assert not runner.is_alive()
    assert psutil.wait_procs([zygote, *items], DEADLINE_SECONDS)[1] == []
    assert host.process.poll() is None


def _expect_loss(sandbox: Sandbox) -> None:
    with pytest.raises((SandboxError, ItemLostError)):
        call(sandbox, "def f(x):\n    while True: pass", 1, seconds=60)


def test_a_host_that_is_restarted_is_waited_for(sandbox: Sandbox, host: Host) -> None:
    """As when the kernel kills its container for memory."""
    (slot,) = sandbox._live
    zygote = psutil.Process(slot.pid)
    host.process.send_signal(signal.SIGKILL)
    host.process.wait(DEADLINE_SECONDS)
    assert psutil.wait_procs([zygote], DEADLINE_SECONDS)[1] == [], "a zygote dies with its host"
    starter = threading.Thread(target=host.start)
    starter.start()
    try:
        assert call(sandbox, "def f(x): return x", 9) == ["i9"]
    finally:
        starter.join()


def test_without_a_host_it_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "START_SECONDS", 0.3)
    with pytest.raises(SandboxError, match=r"no sandbox answers on .*nobody.*container named sandbox"):
        Sandbox(1, HostedSlots(tmp_path / "nobody"))


@pytest.mark.parametrize("message", [b'{"open": []', b"[]", b'{"open": 3}', b"x" * 5000], ids=["cut", "list", "number", "long"])
def test_a_host_that_says_nonsense_is_no_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: bytes) -> None:
    monkeypatch.setattr(source, "START_SECONDS", 0.5)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(64)

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(LENGTH.pack(len(message)) + message)

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(SandboxError, match="no sandbox answers"):
            Sandbox(1, HostedSlots(tmp_path / "socket"))
        answering.join(DEADLINE_SECONDS)


def test_a_host_that_keeps_out_less_than_before_is_not_used(host: Host) -> None:
    slots = HostedSlots(host.path)
    slots._accept(source.ProbeReport(frozenset()))
    with pytest.raises(source.SlotLostError, match="keeps out less than before: network"):
        slots._accept(source.ProbeReport(frozenset({"network"})))
