"""The untrusted side: a warm Python that forks once for each item, and never saw an answer. Run as a file, without site-packages.

    start:  import what solutions import -> enter a Landlock domain -> rehearse a benign item -> ready
    item:   take two descriptors -> fork -> child: read its file, limits, own scope, seccomp -> decode, run, write lines to its pipe -> exit
            meanwhile wait for the child's end, the end of its processor time, or the order to kill it -> say how it ended

The other end measures wall time, reads the pipe to its end and decides; this side has no answers to give away. An item's code and inputs
are read in the fork alone: what the zygote had read, a later item would find in its own memory. One byte `k` kills the item, the end of
the control socket ends the zygote.

What an item costs is page faults, one for each page that its fork touches first, and nearly every object that Python touches is on another
one. So a fork does as little as it can: what can be made, looked up or limited before it is.
"""

import ctypes
import gc
import io
import json
import marshal
import os
import select
import signal
import socket
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

# Modules that are imported from here on ask for work in every fork: new random seeds, locks of threads that there are none of. It is a
# fifth of what a fork costs, and an item needs none of it: its random numbers are the same each time, and so is its verdict.
os.register_at_fork = lambda **_: None

PACKAGES = os.path.realpath(f"{__file__}/../../..")
sys.path.insert(0, PACKAGES)

from rlvr_verifier.processor_time import processor_seconds  # noqa: E402
from rlvr_verifier.sandbox import canonical, landlock, seccomp, toolchains  # noqa: E402
from rlvr_verifier.sandbox.commands import (  # noqa: E402
    ATTACK,
    OPEN_FILES,
    RUN,
    CommandJail,
    Limits,
    Supervisor,
    find_toolchains,
    open_input,
    set_common_limits,
    set_limits,
)
from rlvr_verifier.sandbox.protocol import (  # noqa: E402
    END,
    ERROR,
    LENGTH,
    LIMITS,
    MAX_DESCRIPTORS,
    REPORT,
    VALUE,
    Request,
    unpack_request,
)

sys.path.remove(PACKAGES)

CONTROL, NULL, RESULT = 0, 1, 3
"""The socket to the service is the standard input, the standard output is /dev/null; an item finds its pipe behind these."""
REHEARSALS = 64
"""Until Python has adapted its own code to what it meets there, which otherwise each fork would do for itself."""
MODULES = (
    "abc", "array", "bisect", "cmath", "collections", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "heapq", "io", "itertools", "json", "math", "operator", "queue", "random", "re", "statistics", "string", "struct",
    "textwrap", "time", "types", "typing", "unicodedata",
)  # fmt: skip
"""Those that solutions import often enough: what a module takes is paid in every fork, so what few ask for (hashlib: a tenth of a
millisecond in each fork, 5 where it is imported) is left to them."""
OOM_SCORE = "/proc/self/oom_score_adj"
WRITE_BYTES = 1 << 15
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_CORES = os.cpu_count() or 1
_SIGKILL = int(signal.SIGKILL)
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def main() -> None:
    """Serve items until the control socket ends."""
    protect, languages = sys.argv[1] == "protected", sys.argv[2:]
    socket_ = socket.socket(fileno=CONTROL)
    for module in MODULES:
        __import__(module)
    sys.modules["random"].seed(0)
    for name in ("PWD", "LD_BIND_NOW"):  # bubblewrap sets the first
        os.environ.pop(name, None)
    sys.argv = ["solution"]
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, NULL)
    os.close(null)
    if os.path.exists(OOM_SCORE):
        # Before the next line: the files of a process that is not dumpable belong to root.
        with open(OOM_SCORE, "w") as file:
            file.write("1000")
    for option, value in (
        (_PR_SET_DUMPABLE, 0),
        (_PR_SET_CHILD_SUBREAPER, 1),
        (_PR_SET_NO_NEW_PRIVS, 1),
        (_PR_SET_PDEATHSIG, signal.SIGKILL),
    ):
        if _prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    set_common_limits()
    found, missing = find_toolchains(languages, protect)
    jail = _Jail(protect, found)
    _rehearse()
    gc.collect()
    gc.freeze()
    _say(socket_, {
        "abi": landlock.abi(), "pid": os.getpid(), "missing": missing,
        "languages": {name: {"version": one.version, "steps": len(one.steps), "threads": one.run.threads} for name, one in found.items()},
    })  # fmt: skip
    while (request := _receive(socket_)) is not None:
        _serve(socket_, jail, *request)


def _rehearse() -> None:
    """Run a benign item here, so that forks need not make what it needs."""
    arguments: list[Any] = [(1,), ("a",), ([1, 1.5],), ({"a": (None, True)},)]
    inputs = tuple(marshal.dumps(one) for one in arguments)
    request = Request("def f(x):\n    return [x, {str(x): (1.5, {2}, None)}, True]", "f", inputs, "", None, None)
    for _ in range(REHEARSALS):
        _new_module("solution")
        _run_item(unpack_request(request.pack()), NULL)
    _new_module("solution")


class _MissingFunctionError(Exception):
    """The code runs, and does not define the function that is asked for."""


class _Jail:
    """What an item is locked into; made before the first one, entered by each."""

    def __init__(self, protect: bool, found: Mapping[str, toolchains.Toolchain]) -> None:
        self._protect = protect
        self._filter = seccomp.Filter()
        self._scope = -1
        self.commands: dict[str, CommandJail] = {}
        if protect and landlock.abi() >= landlock.SCOPES_SINCE_ABI:
            self.commands = {name: CommandJail(toolchain) for name, toolchain in found.items()}
            commands = [command for one in found.values() for command in (*one.steps, one.run)]
            landlock.restrict([*_readable(), *{path for one in commands for path in (*one.readable, *one.executable)}])
            self._scope = landlock.prepare_scope()

    def enter(self, limits: Limits, result: int) -> None:
        """Limits first: the filter lets nothing change them.

        Args:
            result: of what is open behind the standard error, this stays, as `RESULT`.
        """
        set_limits(limits.memory_bytes, limits.cpu_seconds)
        if self._scope >= 0:
            landlock.enter(self._scope)
        os.dup2(result, RESULT)
        os.closerange(RESULT + 1, OPEN_FILES)
        if self._protect:
            self._filter.install()

    def close(self) -> None:
        """Forget all rulesets, in an item that has entered one."""
        for commands in self.commands.values():
            commands.close()
        if self._scope >= 0:
            os.close(self._scope)


def _readable() -> list[str]:
    """The standard library, and the system's part of it."""
    return [os.path.dirname(os.__file__), f"{sys.base_prefix}/lib", *landlock.SYSTEM]


def _serve(control: socket.socket, jail: _Jail, limits: bytes, descriptors: Sequence[int]) -> None:
    """One item: fork, wait for its end or a reason to kill it, let it start the threads that it may, and say how it ended."""
    memory_bytes, seconds, threads, size = LIMITS.unpack(limits)
    asked, asking = socket.socketpair() if threads else (None, None)
    own, zygote = Limits(memory_bytes, int(seconds) + 1, asking), os.getpid()
    child = os.fork()
    if child == 0:
        if asked is not None:
            asked.close()
        _be_item(jail, zygote, descriptors, size, own)
    for descriptor in descriptors:
        os.close(descriptor)
    if asking is not None:
        asking.close()
    supervisor, ended = Supervisor(asked, threads), os.pidfd_open(child)
    try:
        killed, spent = _wait_for(child, ended, seconds, min(threads + 1, _CORES), supervisor)
    finally:
        os.close(ended)
        supervisor.close()
    _, status, usage = os.wait4(child, 0)
    control.sendall(REPORT.pack(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, killed, spent))


def _wait_for(child: int, ended: int, seconds: float, cores: int, supervisor: Supervisor) -> tuple[bool, bool]:
    """Whether it was killed by order, and whether it has spent its time, once it has ended."""
    left, killed, spent = seconds, False, False
    while True:
        # Its clock can be read until it has ended, and does not run faster than all cores together.
        wait = None if spent else max(left / cores, 0.001)
        ready, _, _ = select.select([ended, *supervisor.waiting, *([] if killed else [CONTROL])], [], [], wait)
        if ended in ready:
            return killed, spent
        supervisor.serve(ready)
        if CONTROL in ready:
            order = os.read(CONTROL, 1)
            signal.pidfd_send_signal(ended, signal.SIGKILL)
            if not order:
                raise SystemExit(0)
            killed = True
        left = seconds - processor_seconds(child)
        if left <= 0 and not spent:
            spent = True
            signal.pidfd_send_signal(ended, signal.SIGKILL)


def _be_item(jail: _Jail, zygote: int, descriptors: Sequence[int], size: int, limits: Limits) -> None:
    """The forked child: it never returns."""
    code, file, result = 70, descriptors[0], descriptors[1]
    try:
        _prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != zygote:
            return  # it died before the line above: nobody would ever end this process
        request = unpack_request(os.read(file, size))
        os.close(file)
        if request.language is not None and request.step != ATTACK:
            jail.commands[request.language].become(request, descriptors[2:], result, NULL, limits)
        # The control socket is overwritten here.
        os.dup2(NULL if request.entry is not None else open_input(request.stdin), 0)
        os.dup2(NULL, 2)
        if request.entry is None:
            os.dup2(result, 1)
        if request.language is None:
            jail.enter(limits, result)
            result = RESULT
        else:
            jail.commands[request.language].enter(RUN, limits, jail.close)
        code = _run_program(request) if request.entry is None else _run_item(request, result)
    except BaseException:  # noqa: BLE001 - the border of the process: its code says that it failed
        code = 71
    finally:
        os._exit(code)


def _run_item(request: Request, result: int) -> int:
    """Call the entry point once for each input; one line each, then the end marker."""
    write, encode, unpack = os.write, canonical.encode, marshal.loads
    namespace = sys.modules["solution"].__dict__
    try:
        exec(compile(request.source, "<solution>", "exec"), namespace)  # noqa: S102 - this is what the sandbox is for
        entry = namespace.get(str(request.entry), _MissingFunctionError)
        if entry is _MissingFunctionError:
            raise _MissingFunctionError
    except BaseException as error:  # noqa: BLE001 - a solution may raise anything
        write(result, f"{ERROR} 0 {type(error).__name__[:40]}\n".encode())
        return 1
    lines = bytearray()  # each write would wake the service
    for index, arguments in enumerate(request.inputs):
        try:
            lines += f"{VALUE} {index} {encode(entry(*unpack(arguments)))}\n".encode()
        except BaseException as error:  # noqa: BLE001
            lines += f"{ERROR} {index} {type(error).__name__[:40]}\n".encode()
        if len(lines) >= WRITE_BYTES:
            del lines[: write(result, lines)]
    lines += f"{END}\n".encode()
    while lines:
        del lines[: write(result, lines)]
    return 0


def _new_module(name: str) -> dict[str, Any]:
    """The namespace of a module that can be found: dataclasses look for theirs."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module.__dict__


def _run_program(request: Request) -> int:
    """A whole program: what it writes to its standard output is the result."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), encoding="utf-8", write_through=False)
    try:
        exec(compile(request.source, "<solution>", "exec"), _new_module("__main__"))  # noqa: S102
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None or stop.code == 0 else 1
    except BaseException:  # noqa: BLE001 - a program may raise anything
        code = 1
    sys.stdout.flush()
    return code


def _say(control: socket.socket, message: Mapping[str, object]) -> None:
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
