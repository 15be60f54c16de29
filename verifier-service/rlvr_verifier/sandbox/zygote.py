"""The untrusted side: a warm Python that forks once for each item, and never saw an answer. Run as a file, without site-packages.

    start:  import what solutions import -> run one benign item (unwarmed, an item costs twice as much) -> enter a Landlock domain -> ready
    item:   take two descriptors -> fork -> child: read its file, limits, own scope, seccomp -> decode, run, write lines to its pipe -> exit
            meanwhile wait for the child's end, the end of its processor time, or the order to kill it -> say how it ended

The other end measures wall time, reads the pipe to its end and decides; this side has no answers to give away. An item's code and inputs
are read in the fork alone: what the zygote had read, a later item would find in its own memory. One byte `k` kills the item, the end of
the control socket ends the zygote.
"""

import ctypes
import gc
import io
import json
import os
import select
import signal
import socket
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Modules that are imported from here on ask for work in every fork: new random seeds, locks of threads that there are none of. It is a
# fifth of what a fork costs, and an item needs none of it: its random numbers are the same each time, and so is its verdict.
os.register_at_fork = lambda **_: None

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))

from rlvr_verifier.processor_time import processor_seconds  # noqa: E402
from rlvr_verifier.sandbox import canonical, landlock, seccomp, toolchains  # noqa: E402
from rlvr_verifier.sandbox.commands import ATTACK, RUN, CommandJail, Limits, Supervisor, find_toolchains, open_input, set_limits, write_all  # noqa: E402
from rlvr_verifier.sandbox.protocol import END, ERROR, LENGTH, LIMITS, MAX_DESCRIPTORS, VALUE  # noqa: E402

sys.path.remove(str(HERE.parents[2]))

CONTROL = 0
"""The socket to the service is the standard input."""
MODULES = (
    "abc", "array", "bisect", "cmath", "collections", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "operator", "queue", "random", "re", "statistics", "string",
    "struct", "textwrap", "time", "traceback", "types", "typing", "unicodedata",
)  # fmt: skip
WRITE_BYTES = 1 << 15
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_libc = ctypes.CDLL(None, use_errno=True)
_Request = dict[str, object]


def main() -> None:
    """Serve items until the control socket ends."""
    protect, languages = sys.argv[1] == "protected", sys.argv[2:]
    socket_ = socket.socket(fileno=CONTROL)
    for module in MODULES:
        __import__(module)
    sys.modules["random"].seed(0)
    os.environ.pop("PWD", None)  # bubblewrap sets it
    if (score := Path("/proc/self/oom_score_adj")).exists():
        # Before the next line: the files of a process that is not dumpable belong to root.
        score.write_text("1000")
    for option, value in (
        (_PR_SET_DUMPABLE, 0),
        (_PR_SET_CHILD_SUBREAPER, 1),
        (_PR_SET_NO_NEW_PRIVS, 1),
        (_PR_SET_PDEATHSIG, signal.SIGKILL),
    ):
        if _libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    _warm_up()
    found, missing = find_toolchains(languages, protect)
    jail = _Jail(protect, found)
    gc.collect()
    gc.freeze()
    _send(socket_, {
        "abi": landlock.abi(), "pid": os.getpid(), "missing": missing,
        "languages": {name: {"version": one.version, "steps": len(one.steps), "threads": one.run.threads} for name, one in found.items()},
    })  # fmt: skip
    while (request := _receive(socket_)) is not None:
        _serve(socket_, jail, *request)


def _warm_up() -> None:
    """Run one benign item here, so that its pages need not be made in each fork."""
    null = os.open(os.devnull, os.O_WRONLY)
    _run_item({"source": "def f(x):\n    return [x, {str(x): (1.5, None)}]", "entry": "f", "inputs": ["(i1)", '(s"a")']}, null)
    os.close(null)


class _MissingFunctionError(Exception):
    """The code runs, and does not define the function that is asked for."""


class _Jail:
    """What an item is locked into; made before the first one, entered by each."""

    def __init__(self, protect: bool, found: Mapping[str, toolchains.Toolchain]) -> None:
        self._protect = protect
        self.null = os.open(os.devnull, os.O_RDWR)
        """Opened out here: it cannot be opened in the domain."""
        self._filter = seccomp.Filter()
        self._scope = -1
        self.commands: dict[str, CommandJail] = {}
        if protect and landlock.abi() >= landlock.SCOPES_SINCE_ABI:
            self.commands = {name: CommandJail(toolchain) for name, toolchain in found.items()}
            commands = [command for one in found.values() for command in (*one.steps, one.run)]
            landlock.restrict([*_readable(), *{path for one in commands for path in (*one.readable, *one.executable)}])
            self._scope = landlock.prepare_scope()

    def enter(self, memory_bytes: int, cpu_seconds: int) -> None:
        """Limits first: the filter lets nothing change them."""
        set_limits(memory_bytes, cpu_seconds)
        if self._protect:
            if self._scope >= 0:
                landlock.enter(self._scope)
            self.close()
            self._filter.install()

    def close(self) -> None:
        """Forget all rulesets, in an item that has entered one."""
        for commands in self.commands.values():
            commands.close()
        if self._scope >= 0:
            os.close(self._scope)


def _readable() -> list[str]:
    """The standard library, what its extension modules link to, and time zones."""
    return [
        os.path.dirname(os.__file__), f"{sys.base_prefix}/lib", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo",
        "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom",
    ]  # fmt: skip


def _serve(control: socket.socket, jail: _Jail, limits: bytes, descriptors: Sequence[int]) -> None:
    """One item: fork, wait for its end or a reason to kill it, let it start the threads that it may, and say how it ended."""
    memory_bytes, seconds, threads = LIMITS.unpack_from(limits)
    zygote = os.getpid()
    asked, asking = socket.socketpair() if threads else (None, None)
    child = os.fork()
    if child == 0:
        if asked is not None:
            asked.close()
        _be_item(jail, zygote, descriptors, memory_bytes, int(seconds) + 1, asking)
    for descriptor in descriptors:
        os.close(descriptor)
    if asking is not None:
        asking.close()
    supervisor = Supervisor(asked, threads)
    ended, killed, spent, cores = os.pidfd_open(child), False, False, min(threads + 1, os.cpu_count() or 1)
    try:
        while True:
            # Until it has ended its clock can be read, and does not run faster than all cores together.
            left = seconds - processor_seconds(child)
            if left <= 0 and not spent:
                spent = True
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            wait = None if spent else max(left / cores, 0.001)
            ready, _, _ = select.select([ended, *supervisor.waiting, *([] if killed else [CONTROL])], [], [], wait)
            if ended in ready:
                break
            supervisor.serve(ready)
            if CONTROL in ready:
                order = control.recv(1)
                signal.pidfd_send_signal(ended, signal.SIGKILL)
                if not order:
                    raise SystemExit(0)
                killed = True
    finally:
        os.close(ended)
        supervisor.close()
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    _send(control, {"code": code, "cpu": usage.ru_utime + usage.ru_stime, "killed": killed, "spent": spent})


def _be_item(
    jail: _Jail, zygote: int, descriptors: Sequence[int], memory_bytes: int, cpu_seconds: int, asking: socket.socket | None
) -> None:
    """The forked child: it never returns."""
    code, (file, result) = 70, descriptors[:2]
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != zygote:
            return  # it died before the line above: nobody would ever end this process
        request: _Request = json.loads(os.read(file, os.fstat(file).st_size))
        os.close(file)
        language, own = request.get("language"), Limits(memory_bytes, cpu_seconds, asking)
        if language is not None and request["step"] != ATTACK:
            jail.commands[str(language)].become(request, descriptors[2:], result, jail.null, own)
        is_program = "stdin" in request
        stdin = open_input(str(request["stdin"])) if is_program else jail.null
        # What an item has open: its input, its output, and its pipe. The control socket is overwritten here.
        for source, target in ((stdin, 0), (result if is_program else jail.null, 1), (jail.null, 2)):
            os.dup2(source, target)
        for descriptor in {stdin, jail.null, *([result] if is_program else [])}:
            os.close(descriptor)
        if language is None:
            jail.enter(memory_bytes, cpu_seconds)
        else:
            jail.commands[str(language)].enter(RUN, own, jail.close)
        code = _run_program(request) if is_program else _run_item(request, result)
    except BaseException:  # noqa: BLE001 - the border of the process: its code says that it failed
        code = 71
    finally:
        os._exit(code)


def _run_item(request: _Request, result: int) -> int:
    """Call the entry point once for each input; one line each, then the end marker."""
    write, encode = os.write, canonical.encode
    namespace = _new_module("solution")
    inputs = request["inputs"]
    assert isinstance(inputs, list)
    sys.argv = ["solution"]
    try:
        exec(compile(str(request["source"]), "<solution>", "exec"), namespace)  # noqa: S102 - this is what the sandbox is for
        entry = namespace.get(str(request["entry"]), _MissingFunctionError)
        if entry is _MissingFunctionError:
            raise _MissingFunctionError
    except BaseException as error:  # noqa: BLE001 - a solution may raise anything
        write(result, f"{ERROR} 0 {type(error).__name__[:40]}\n".encode())
        return 1
    lines = bytearray()  # each write would wake the service
    for index, text in enumerate(inputs):
        try:
            lines += f"{VALUE} {index} {encode(entry(*_arguments(text)))}\n".encode()
        except BaseException as error:  # noqa: BLE001
            lines += f"{ERROR} {index} {type(error).__name__[:40]}\n".encode()
        if len(lines) >= WRITE_BYTES:
            write_all(write, result, bytes(lines))
            lines.clear()
    write_all(write, result, bytes(lines) + f"{END}\n".encode())
    return 0


def _new_module(name: str) -> dict[str, Any]:
    """The namespace of a module that can be found: dataclasses look for theirs."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module.__dict__


def _arguments(text: str) -> tuple[object, ...]:
    arguments = canonical.decode(text)
    assert isinstance(arguments, tuple)
    return arguments


def _run_program(request: _Request) -> int:
    """A whole program: what it writes to its standard output is the result."""
    sys.argv = ["solution"]
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), encoding="utf-8", write_through=False)
    try:
        exec(compile(str(request["source"]), "<solution>", "exec"), _new_module("__main__"))  # noqa: S102
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None or stop.code == 0 else 1
    except BaseException:  # noqa: BLE001 - a program may raise anything
        code = 1
    sys.stdout.flush()
    return code


def _send(control: socket.socket, message: _Request) -> None:
    data = json.dumps(message).encode()
    control.sendall(LENGTH.pack(len(data)) + data)


def _receive(control: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next item: its limits, and the descriptors of its file and its pipe; None at the end. A `k` that came too late is skipped."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        if data == b"i":
            break
    limits = control.recv(LIMITS.size, socket.MSG_WAITALL)
    if len(limits) != LIMITS.size or len(descriptors) < 2:
        raise SystemExit(f"an item with {len(limits)} bytes of limits and {len(descriptors)} descriptors")
    return limits, descriptors


if __name__ == "__main__":
    main()
