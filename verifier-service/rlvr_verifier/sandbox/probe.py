"""What a slot keeps out, measured by attacks inside it; a level is a set of attacks that all failed, never inferred from versions.

Each attack is a function that returns True when it succeeded. They are harmless when they do: signal 0, a socket that is closed, a byte
in a file of our own. The service brings the targets: a process of its own, a file that nobody may read, a folder that nobody may write.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from rlvr_verifier.sandbox.canonical import decode, encode
from rlvr_verifier.sandbox.protocol import SolutionError, TranscriptError, read_transcript
from rlvr_verifier.sandbox.slot import Command, Ending, Item, Slot

PROBE_SECONDS = 20.0
"""Of one attack, which takes milliseconds: one that runs out of it counts as open, and that must not be a busy node's doing."""
PROBE_MEMORY_BYTES = 256 << 20

_PREAMBLE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def works(action):
    try:
        result = action()
    except (OSError, RuntimeError, MemoryError, ValueError):
        return False
    return result is None or result >= 0
"""


class Level(StrEnum):
    """How far code that runs in a slot is kept away from everything else."""

    L0 = "L0"
    """Limits of time, memory and size at most: not for untrusted code."""
    L1 = "L1"
    """A Landlock domain a slot, a scope and a seccomp allow-list an item. Remaining: `stat` of paths, timing, defects of the kernel."""
    L1U = "L1u"
    """As L1, and a slot is another user than whoever owns what is outside."""
    L2 = "L2"
    """As L1u, and which files and processes there are outside cannot be seen either: namespaces of its own."""

    @property
    def rank(self) -> float:
        """For comparing, and as a metric: 0, 1, 1.5, 2."""
        return float(self[1]) + (0.5 if self is Level.L1U else 0.0)


@dataclass(frozen=True, slots=True)
class Targets:
    """What the attacks aim at."""

    bystander: int
    """Process id of a child of the service."""
    secret: str
    """A file with one byte."""
    folder: str
    """A folder that anybody may write."""


ATTACKS: Mapping[str, str] = {
    "signal_parent": "def attack(t): return works(lambda: os.kill(os.getppid(), 0))",
    "signal_service": "def attack(t): return works(lambda: os.kill(t['bystander'], 0))",
    "trace": """
def attack(t):
    seized = [libc.ptrace(0x4206, pid, None, None) for pid in (os.getppid(), t["bystander"])]
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    read = [libc.process_vm_readv(pid, vector, 1, vector, 1, 0) for pid in (os.getppid(), t["bystander"])]
    return max(seized) >= 0 or max(read) > 0
""",
    "read_process": """
def attack(t):
    def read(path):
        with open(path, "rb") as file: file.read(1)
    paths = [f"/proc/{pid}/{name}" for pid in (os.getppid(), t["bystander"], "self") for name in ("environ", "maps")]
    return any([works(lambda path=path: read(path)) for path in paths])
""",
    "read_file": """
def attack(t):
    def read():
        with open(t["secret"], "rb") as file: file.read(1)
    return works(read)
""",
    "write_file": """
def attack(t):
    path = os.path.join(t["folder"], "written")
    def write():
        with open(path, "wb") as file: file.write(b"x")
    changes = [lambda: os.mkdir(path + "d"), lambda: os.symlink("x", path + "l"), lambda: os.rename(t["secret"], path + "r")]
    return any([works(change) for change in [write, *changes]])
""",
    "change_attributes": """
import fcntl
def attack(t):
    secret = t["secret"]
    changes = [lambda: os.chmod(secret, 0o666), lambda: os.utime(secret, (1, 1)), lambda: os.setxattr(secret, "user.x", b"1")]
    changes += [lambda: fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_SH), lambda: fcntl.fcntl(1, 8, os.getpid())]
    return any([works(change) for change in changes])
""",
    "network": """
import socket
def attack(t):
    kinds = [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM)]
    kinds += [(socket.AF_NETLINK, socket.SOCK_RAW)]
    return any([works(lambda kind=kind: socket.socket(*kind).close()) for kind in kinds])
""",
    "new_process": """
def attack(t):
    def fork():
        if os.fork() == 0: os._exit(0)
    def thread():
        import _thread
        _thread.start_new_thread(lambda: None, ())
    def execute():
        if libc.execve(b"/nonexistent", None, None) < 0 and ctypes.get_errno() != 2: raise OSError
    return any([works(fork), works(thread), works(execute)])
""",
    "shared_objects": """
def attack(t):
    shared = [(29, 0, 4096, 0o1600), (68, 0, 0o1600), (64, 0, 1, 0o1600), (240, b"x", 0o102, 0o600, None)]  # shm, msg, sem, mq
    kernel = [(319, b"x", 0), (250, 0, -3, 0), (425, 1, ctypes.create_string_buffer(128))]  # memfd, keyctl, io_uring
    timer = (222, 1, None, ctypes.byref(ctypes.c_int()))
    return any([libc.syscall(*call) >= 0 for call in [*shared, *kernel, timer]])
""",
    "raise_limits": """
import resource
def attack(t):
    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))
    def memory():
        keep = [bytes(64 << 20) for _ in range(64)]
    return any([works(limit), works(memory), works(lambda: libc.prctl(1, 0)), works(lambda: os.setuid(12345))])
""",
    "inherit": """
def attack(t):
    open_ = []
    for number in range(3, 64):
        try:
            os.fstat(number)
            open_.append(number)
        except OSError: pass
    return len(open_) > 1 or set(os.environ) - {"PYTHONHASHSEED", "LC_ALL", "TZ"} != set()
""",
    "share_user": """
def attack(t): return works(lambda: 0 if os.stat(t["folder"]).st_uid == os.getuid() else -1)
""",
    "look": """
def attack(t):
    return any([works(lambda path=path: os.stat(path) and None) for path in (t["secret"], f"/proc/{t['bystander']}")])
""",
}  # fmt: skip
"""Name, and the source of the attack."""
NEEDED: Mapping[Level, frozenset[str]] = {
    Level.L0: frozenset(),
    Level.L1: frozenset(ATTACKS) - {"look", "share_user"},
    Level.L1U: frozenset(ATTACKS) - {"look"},
    Level.L2: frozenset(ATTACKS),
}
"""What must have failed for a level."""


COMMAND_ATTACKS: Mapping[str, str] = {
    **ATTACKS,
    "new_process": """
import sys
def attack(t):
    def fork():
        if os.fork() == 0: os._exit(0)
    def execute(path):
        # Where this works, nobody is left to say that it failed.
        libc.execve(path, (ctypes.c_char_p * 2)(path, None), None)
        return -1
    def separate(flags):
        pid = libc.syscall(56, flags, 0, 0, 0, 0)
        if pid == 0: os._exit(0)
        return pid
    flags = [17, 0x4000, 0x4111, 0x10000000, 0]
    execs = [lambda path=path: execute(path) for path in (b"/bin/sh", os.fsencode(sys.executable), b"/usr/bin/env")]
    return any([works(fork), *map(works, execs), *[works(lambda flag=flag: separate(flag)) for flag in flags]])
""",
}  # fmt: skip
"""The same for what runs in the jail of another language, which may execute itself, and start the threads that it is let."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What was measured in one slot."""

    open: frozenset[str]
    """Attacks that succeeded, or whose outcome is not known."""
    weak: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Languages in whose jail more attacks succeed, and which."""
    faults: tuple[str, ...] = ()
    """Why slots could not be put behind what was asked for."""

    @property
    def level(self) -> Level:
        """The highest level all of whose attacks failed."""
        return max((level for level, needed in NEEDED.items() if not needed & self.open), key=lambda level: level.rank)

    def open_below(self, level: Level) -> tuple[str, ...]:
        """What keeps this from being `level`."""
        return tuple(sorted(self.open & NEEDED[level]))


def probe(slot: Slot, place: Path | None = None) -> ProbeReport:
    """Attack from inside a slot, as Python and in the jail of each other language; takes about 0.2 s for each.

    Args:
        place: folder in which the targets are made; None: the system's for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="rlvr-probe-", dir=place) as folder:
        os.chmod(folder, 0o777)  # noqa: S103 - so that it is not the mode that keeps the attack out
        secret = Path(folder, "secret")
        secret.write_bytes(b"x")
        bystander = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, env={})
        try:
            targets = Targets(bystander.pid, str(secret), folder)
            open_ = frozenset(name for name, source in ATTACKS.items() if not _is_blocked(slot, source, targets, None))
            weak: dict[str, frozenset[str]] = {}
            for name, language in slot.languages.items():
                command = Command(name, "attack", language.threads)
                more = [attack for attack, source in COMMAND_ATTACKS.items() if not _is_blocked(slot, source, targets, command)]
                weak |= {name: frozenset(more) - open_} if set(more) - open_ else {}
            return ProbeReport(open_, weak)
        finally:
            bystander.kill()
            with suppress(OSError):
                bystander.communicate()


def _is_blocked(slot: Slot, source: str, targets: Targets, command: Command | None) -> bool:
    """Only an attack that says that it failed counts as blocked: one that crashed on the way was not tried."""
    arguments = encode(({"bystander": targets.bystander, "secret": targets.secret, "folder": targets.folder},))
    item = Item(_PREAMBLE + source, "attack", [arguments], seconds=PROBE_SECONDS, memory_bytes=PROBE_MEMORY_BYTES, command=command)
    done = slot.run(item)
    if done.ending is not Ending.EXITED:
        return False
    try:
        return decode(read_transcript(done.output, 1)[0]) is False
    except (TranscriptError, SolutionError):
        return False
