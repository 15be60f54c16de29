"""The untrusted side of programs that are no Python: what a fork of the zygote enters before a command takes its place.

    toolchain -> one jail for each of its steps, and one for what it makes -> limits, Landlock rules and scope, seccomp -> execute

A command is one process: it may start no other, and execute nothing but itself. Threads are let pass one by one by the zygote, which counts
them: the kernel's own limit counts all processes of a user, in every pod of the node.
"""

import os
import resource
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from rlvr_verifier.sandbox import landlock, seccomp
from rlvr_verifier.sandbox.protocol import Request
from rlvr_verifier.sandbox.toolchains import NODE_SOURCE, Command, Toolchain, ToolchainMissingError, find

PRODUCT_BYTES = 64 << 20
"""Of one file that a step makes."""
OPEN_FILES = 64
RUN = "run"
ATTACK = "attack"
"""Instead of a step: Python, in the jail of the programs of a language, to measure what it keeps out."""


_setrlimit, _AS, _CPU, _FSIZE = resource.setrlimit, resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE


class Limits(NamedTuple):
    """Of one command."""

    memory_bytes: int
    """On top of what the runtime of its language takes for itself."""
    cpu_seconds: int
    asking: socket.socket | None
    """To the zygote, for the listener of a command with threads."""


def find_toolchains(languages: Sequence[str], protect: bool) -> tuple[dict[str, Toolchain], dict[str, str]]:
    """Those that are here, and what is wrong with the others."""
    found: dict[str, Toolchain] = {}
    missing: dict[str, str] = {}
    for language in languages:
        if not protect or landlock.abi() < landlock.SCOPES_SINCE_ABI:
            missing[language] = "it needs Landlock, in Linux 6.12 or newer"
            continue
        try:
            found[language] = find(language)
        except ToolchainMissingError as error:
            missing[language] = str(error)[:500]
    return found, missing


class CommandJail:
    """What the commands of one language are locked into; made before the zygote locks itself in."""

    def __init__(self, toolchain: Toolchain) -> None:
        self._commands: dict[object, Command] = {**dict(enumerate(toolchain.steps)), RUN: toolchain.run}
        self._rulesets = {step: landlock.prepare(one.readable, one.executable) for step, one in self._commands.items()}
        self._filters = {threads: seccomp.Filter(command=True, threads=threads) for threads in (False, True)}

    def become(self, request: Request, files: Sequence[int], result: int, null: int, limits: Limits) -> NoReturn:
        """Take the place of this process.

        Args:
            files: what the step reads, and what it makes; for a program its executable or source.
        """
        step = request.step
        command = self._commands[step]
        os.dup2(null, 2)
        if step == RUN:
            program = files[0]
            os.dup2(open_input(request.stdin), 0)
            os.dup2(result, 1)
            env = {**command.env, **({"GOMEMLIMIT": str(limits.memory_bytes)} if "GOMAXPROCS" in command.env else {})}
        else:
            program, env = -1, dict(command.env)
            os.dup2(files[0], 0)
            os.dup2(files[1], 1)
        argv = list(command.argv) or ["solution"]
        if step == RUN and command.argv:
            argv.insert(1, f"--max-old-space-size={limits.memory_bytes >> 20}")
            source, program = os.dup(program), -1
            if limits.asking is not None and limits.asking.fileno() == NODE_SOURCE:
                limits = limits._replace(asking=limits.asking.dup())
            os.dup2(source, NODE_SOURCE)
            os.lseek(NODE_SOURCE, 0, os.SEEK_SET)  # the last run has read it to its end
        self.enter(step, limits, self.close)
        # A program without a path is executed by its descriptor, which it does not keep.
        os.execve(program if program >= 0 else argv[0], argv, env)  # noqa: S606 - this is what the sandbox is for

    def enter(self, step: object, limits: Limits, forget: Callable[[], None]) -> None:
        """Limits first: the filter lets nothing change them.

        Args:
            forget: closes all rulesets that this process holds.
        """
        command = self._commands[step]
        set_limits(limits.memory_bytes + command.own_bytes, limits.cpu_seconds, 0 if step == RUN else PRODUCT_BYTES)
        landlock.enter(self._rulesets[step])
        forget()
        chosen = self._filters[command.threads > 0]
        if not command.threads:
            chosen.install()
            return
        assert limits.asking is not None
        listener = chosen.install_supervised()
        socket.send_fds(limits.asking, [b"l"], [listener])
        os.close(listener)
        limits.asking.close()

    def close(self) -> None:
        """Forget it, in an item that needs it no longer."""
        for ruleset in self._rulesets.values():
            os.close(ruleset)


class Supervisor:
    """Lets an item start as many threads as it may.

    Args:
        asked: the item sends its listener through it; None: it may start none, and the filter sees to it.
    """

    def __init__(self, asked: socket.socket | None, threads: int) -> None:
        self._asked, self._left, self._listener = asked, threads, -1

    @property
    def waiting(self) -> list[int]:
        """What to wait for until it is readable."""
        if self._listener >= 0:
            return [self._listener]
        return [] if self._asked is None else [self._asked.fileno()]

    def serve(self, ready: Sequence[int]) -> None:
        """Answer what is readable, if it is for this one."""
        if self._listener >= 0 and self._listener in ready:
            seccomp.answer(self._listener, self._left > 0)
            self._left -= 1
        elif self._asked is not None and self._asked.fileno() in ready:
            _, descriptors, _, _ = socket.recv_fds(self._asked, 1, 1, socket.MSG_CMSG_CLOEXEC)
            self._listener = descriptors[0] if descriptors else -1
            self._asked.close()
            self._asked = None

    def close(self) -> None:
        """After the item's end."""
        if self._asked is not None:
            self._asked.close()
        if self._listener >= 0:
            os.close(self._listener)


def set_common_limits() -> None:
    """Those that are the same for all items, and do a zygote no harm; for good."""
    _setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        _setrlimit(kind, (0, 0))


def set_limits(memory_bytes: int, cpu_seconds: int, file_bytes: int = 0) -> None:
    """Those of an item; for good."""
    _setrlimit(_AS, (memory_bytes, memory_bytes))
    _setrlimit(_CPU, (cpu_seconds, cpu_seconds + 1))
    _setrlimit(_FSIZE, (file_bytes, file_bytes))


def open_input(text: str) -> int:
    """A file in memory, which no other process has."""
    descriptor = os.memfd_create("stdin")
    write_all(os.write, descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def write_all(write: Callable[[int, bytes], int], descriptor: int, data: bytes) -> None:
    """Write all of it, however little goes at once."""
    while data:
        data = data[write(descriptor, data) :]
