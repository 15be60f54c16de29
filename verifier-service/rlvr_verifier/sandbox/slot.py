"""The service's side of one zygote: sends items, measures time, reads what comes back, and kills.

    run: pipe -> send item and write end -> read until the end of the file, the deadline or the byte cap -> kill if need be -> how it ended

How an item ended says whose doing it was: an exit, a signal of its own making or an own limit is the candidate's; a SIGKILL that was not
sent from here (the kernel short of memory, a person) or a zygote that is gone is the infrastructure's, `SlotLostError`.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from rlvr_verifier.processor_time import WALL_FACTOR
from rlvr_verifier.sandbox.isolation import NONE, Isolation
from rlvr_verifier.sandbox.protocol import LENGTH, LIMITS, MAX_HELLO_BYTES, REPORT, Report, Request, pack_arguments

START_SECONDS = 20.0
QUICK_SECONDS = 0.005
"""That the output of an item may wait in its pipe."""
CLOSING_SECONDS = 5.0
"""How long a killed item, or a zygote told to end, may take to be gone."""
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC", "LD_BIND_NOW": "1"}
"""All that a zygote inherits: the hash seed is fixed, so that verdicts do not depend on it, and nothing is left to link in a fork."""


def zygote_command(protected: bool = True, languages: Sequence[str] = ()) -> list[str]:
    """How a zygote is started; its standard input is the socket.

    Args:
        languages: beside Python, which it shall find the tools of.
    """
    zygote = Path(__file__).with_name("zygote.py")
    return [sys.executable, "-s", "-S", "-P", "-B", str(zygote), "protected" if protected else "bare", *languages]


class SlotLostError(RuntimeError):
    """The item, or its zygote, was ended by something that is neither this service nor the item."""


class Ending(StrEnum):
    """How an item ended."""

    EXITED = "exited"
    """By itself, with whatever exit code."""
    SIGNALLED = "signalled"
    """By a signal of its own making: a crash, or a forbidden system call."""
    TIMEOUT = "timeout"
    """It used up its wall time or processor time."""
    OVERFLOW = "overflow"
    """It wrote more than it may."""


@dataclass(frozen=True, slots=True)
class Command:
    """One step of a language's toolchain, or a program that it made."""

    language: str
    step: int | str
    """Number of the step, or what `commands` calls it."""
    threads: int
    files: tuple[int, ...] = ()
    """Descriptors: what a step reads and what it makes; what a program is."""


@dataclass(frozen=True, slots=True)
class Language:
    """What a slot can run beside Python."""

    version: str
    steps: int
    """Commands that make a program of a source."""
    threads: int
    """That a command may start."""


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of untrusted code to run, without any answer."""

    source: str
    entry: str | None = None
    """Function to call for each of `inputs`; None for a whole program that reads `stdin`."""
    inputs: Sequence[str] = ()
    """Canonical argument tuples."""
    stdin: str = ""
    seconds: float = 5.0
    """Processor time."""
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 20
    wall_seconds: float | None = None
    """Measured out here; None: `WALL_FACTOR` times as much."""
    command: "Command | None" = None
    """What to run instead of Python; `source` is then left empty."""

    def limits(self, size: int) -> bytes:
        """What the zygote is told of it, and of a message of `size` bytes."""
        return LIMITS.pack(self.memory_bytes, self.seconds, 0 if self.command is None else self.command.threads, size)

    def message(self) -> bytes:
        """What the item is given: the same bytes whatever the answers are."""
        language, step = (None, None) if self.command is None else (self.command.language, self.command.step)
        return Request(self.source, self.entry, tuple(map(pack_arguments, self.inputs)), self.stdin, language, step).pack()


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of an item gave."""

    ending: Ending
    code: int
    """Exit code, or the signal's number below zero."""
    output: bytes = field(repr=False)
    cpu_seconds: float = 0.0


class Slot:
    """One zygote and the socket to it. Not for two threads at once.

    Args:
        control: connected to a zygote, which says first what it is.
        process: the zygote, where it is a child of this process.

    Raises:
        SlotLostError: it says nothing.
    """

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._control, self._process = control, process
        try:
            hello = receive(self._control, time.monotonic() + START_SECONDS)
            self.landlock_abi, self.pid = int(str(hello["abi"])), int(str(hello["pid"]))
            self.languages, self.missing = _read_languages(hello)
        except (SlotLostError, KeyError, TypeError, ValueError) as error:
            self.close()
            raise SlotLostError(f"a zygote does not start: {error}") from error

    @classmethod
    def start(cls, protected: bool = True, languages: Sequence[str] = (), isolation: Isolation = NONE) -> "Slot":
        """A zygote that is a child of this process.

        Args:
            protected: False only to measure what an unprotected item can do.
            languages: that it shall offer beside Python.
            isolation: what it is put behind.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                isolation.wrap(zygote_command(protected, languages)),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        return cls(ours, process)

    def run(self, item: Item) -> Run:
        """Run one item to its end.

        Raises:
            SlotLostError: this slot can no longer be used, and the item was not judged.
        """
        started = time.monotonic()
        deadline = started + (WALL_FACTOR * item.seconds if item.wall_seconds is None else item.wall_seconds)
        reading = self._begin(item, deadline)
        try:
            output, report = self._follow(reading, deadline, item.output_bytes)
            too_late, too_much = report is None and time.monotonic() >= deadline, len(output) > item.output_bytes
            if report is None:
                self._send(b"k")
                report = self._receive_report()
        finally:
            os.close(reading)
        code, cpu_seconds = report.code, report.cpu_seconds
        killed_here = report.killed and code == -signal.SIGKILL
        # The kernel's own limit is whole seconds, and there for a zygote that is late.
        spent = report.spent or cpu_seconds >= int(item.seconds) + 1
        out_of_time = spent and code in (-signal.SIGKILL, -signal.SIGXCPU)
        if too_much:
            return Run(Ending.OVERFLOW, code, output[: item.output_bytes], cpu_seconds)
        if too_late or out_of_time:
            return Run(Ending.TIMEOUT, code, output, cpu_seconds)
        if code == -signal.SIGKILL and not killed_here:
            raise SlotLostError("an item was killed by neither its slot nor itself; was the machine short of memory?")
        return Run(Ending.EXITED if code >= 0 else Ending.SIGNALLED, code, output, cpu_seconds)

    def kill(self) -> None:
        """End the zygote, and with it what it runs; for any thread. Whoever waits for an item gets `SlotLostError`."""
        if self._process is not None:
            # Another user's, where each slot is one, is out of reach without CAP_KILL; it ends with its socket.
            with suppress(PermissionError):
                self._process.kill()
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the zygote, and forget it; for the thread that uses the slot."""
        self.kill()
        self._control.close()
        if self._process is not None:
            self._process.wait(CLOSING_SECONDS)

    def _begin(self, item: Item, deadline: float) -> int:
        """Send the item; returns the read end of its pipe."""
        message = item.message()
        with open(os.memfd_create("item"), "w+b", buffering=0) as file:
            file.write(message)
            file.seek(0)
            files = () if item.command is None else item.command.files
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                os.set_blocking(writing, True)
                self._control.settimeout(max(0.1, deadline - time.monotonic()))
                # One message: descriptors come with the first byte, the limits follow it.
                socket.send_fds(self._control, [b"i", item.limits(len(message))], [file.fileno(), writing, *files])
            except OSError as error:
                os.close(reading)
                raise SlotLostError(f"a zygote takes no item: {error}") from error
            finally:
                os.close(writing)
        return reading

    def _follow(self, reading: int, deadline: float, cap: int) -> tuple[bytes, Report | None]:
        """What is written until its end, and the zygote's report; no report when time or space ran out before."""
        poll, output, open_ = select.poll(), bytearray(), True
        poll.register(self._control, select.POLLIN)
        # Most items end at once, and all that they write fits into the pipe: then this thread wakes once, for the report.
        poll.poll(min(QUICK_SECONDS, max(0.0, deadline - time.monotonic())) * 1000)
        poll.register(reading, select.POLLIN)
        report: Report | None = None
        while (open_ or report is None) and len(output) <= cap:
            left = deadline - time.monotonic()
            if left <= 0 and report is None:
                return bytes(output), None
            # Once it has ended, what is left in the pipe is read without waiting.
            for ready, _ in poll.poll(max(0.0, left) * 1000 + 1):
                if ready == reading:
                    piece = os.read(reading, 1 << 16)
                    output += piece
                    if not piece:
                        open_ = False
                        poll.unregister(reading)
                else:
                    report = self._receive_report()
                    poll.unregister(self._control)
        return bytes(output), report

    def _receive_report(self) -> Report:
        return Report._make(REPORT.unpack(_read(self._control, REPORT.size, time.monotonic() + CLOSING_SECONDS)))

    def _send(self, data: bytes) -> None:
        try:
            self._control.sendall(data)
        except OSError as error:
            raise SlotLostError(f"a zygote is gone: {error}") from error


def _read_languages(hello: Mapping[str, object]) -> tuple[dict[str, Language], dict[str, str]]:
    """What a zygote offers, and why not the others."""
    found, missing = hello["languages"], hello["missing"]
    if not isinstance(found, dict) or not isinstance(missing, dict):
        raise ValueError("languages that are no objects")
    languages = {str(name): Language(str(one["version"]), int(one["steps"]), int(one["threads"])) for name, one in found.items()}
    return languages, {str(name): str(why) for name, why in missing.items()}


def receive(control: socket.socket, deadline: float) -> Mapping[str, object]:
    """What the other side says of itself.

    Raises:
        SlotLostError: none came before the deadline (monotonic), or what came is none.
    """
    (length,) = LENGTH.unpack(_read(control, LENGTH.size, deadline))
    if length > MAX_HELLO_BYTES:
        raise SlotLostError(f"a zygote says {length} bytes at once")
    try:
        message = json.loads(_read(control, length, deadline))
    except ValueError as error:
        raise SlotLostError(f"a zygote says what is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise SlotLostError("a zygote says what is no object")
    return message


def _read(control: socket.socket, length: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < length:
        control.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            piece = control.recv(length - len(data))
        except OSError as error:
            raise SlotLostError(f"a zygote does not answer: {error}") from error
        if not piece:
            raise SlotLostError("a zygote has ended")
        data += piece
    return bytes(data)
