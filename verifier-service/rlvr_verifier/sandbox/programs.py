"""Makes programs out of source, in slots, and holds them out of their reach.

    source -> the steps of its language, each a run in a slot that reads one file in memory and makes another -> sealed executable -> runs

A program is kept here, not in the slot, and sealed, so that no run can change it for the next one. What a compiler does is the candidate's
doing, like everything that it makes of the candidate's source.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rlvr_verifier.sandbox.pool import Sandbox
from rlvr_verifier.sandbox.slot import Command, Ending, Item, Run

COMPILE_SECONDS = 30.0
"""Processor time of all steps together; C++ with all of its library takes one or two on a free core."""
COMPILE_BYTES = 1 << 30
"""Address space of a step."""
_MFD_EXEC = 0x10
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class CompileError(ValueError):
    """No program comes of the source; says how the compiler ended."""


class Program:
    """A program that can be run any number of times."""

    def __init__(self, sandbox: Sandbox, language: str, descriptor: int) -> None:
        self._sandbox, self._command = sandbox, Command(language, "run", sandbox.languages[language].threads, (descriptor,))

    def run(self, stdin: str, seconds: float, wall_seconds: float, memory_bytes: int) -> Run:
        """Run it on one input; `seconds` are of processor time.

        Raises:
            ItemLostError, SandboxError: as `Sandbox.run` does.
        """
        item = Item("", stdin=stdin, seconds=seconds, wall_seconds=wall_seconds, memory_bytes=memory_bytes, command=self._command)
        return self._sandbox.run(item)


@contextmanager
def compiled(sandbox: Sandbox, language: str, source: str) -> Iterator[Program]:
    """The program of a source, until the end of the block.

    Raises:
        CompileError: there is none.
        ItemLostError, SandboxError: as `Sandbox.run` does.
    """
    offered = sandbox.languages[language]
    current = _file(source.encode())
    try:
        left = COMPILE_SECONDS
        for step in range(offered.steps):
            made = _file()
            try:
                left -= _make(sandbox, Command(language, step, offered.threads, (current, made)), left)
            except BaseException:
                os.close(made)
                raise
            os.close(current)
            current = made
        fcntl.fcntl(current, fcntl.F_ADD_SEALS, _SEALS)
        yield Program(sandbox, language, current)
    finally:
        os.close(current)


def _make(sandbox: Sandbox, command: Command, seconds: float) -> float:
    """Run a step; returns the processor time that it took."""
    done = sandbox.run(Item("", seconds=max(0.1, seconds), memory_bytes=COMPILE_BYTES, command=command))
    if done.ending is Ending.TIMEOUT:
        raise CompileError(f"compiling it took more than {COMPILE_SECONDS:g} s")
    if done.ending is not Ending.EXITED or done.code != 0:
        raise CompileError(f"it does not compile: {'exit code' if done.code >= 0 else 'signal'} {abs(done.code)}")
    # Also what the step itself has read to its end.
    os.lseek(command.files[1], 0, os.SEEK_SET)
    return done.cpu_seconds


def _file(data: bytes = b"") -> int:
    """A file in memory that may be executed and sealed, at its beginning."""
    descriptor = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
