"""What the service and a zygote say to each other, and how strictly the service reads what an item wrote.

    host -> service:   length, JSON {open, weak, faults}, where the sandbox is a container of its own
    zygote -> service: length, JSON {abi, pid, languages, missing} when it is warm
    service -> zygote: b"i" with a file and the write end of a pipe, limits;  b"k" to kill
    file -> item:      a `Request`
    zygote -> service: a `Report` when the item has ended
    item -> pipe:      "v INDEX CANONICAL" or "e INDEX TYPE" for each input in order, then "end", then the end of the file

An item may write anything into its pipe. It is read to its end; a line that is missing, repeated or out of order, and a byte after the end
marker, refuse the whole item, so that no verdict depends on who wrote first.
"""

import marshal
import re
import struct
from functools import lru_cache
from typing import Any, NamedTuple

from rlvr_verifier.sandbox.canonical import decode

LENGTH = struct.Struct("I")
LIMITS = struct.Struct("QdIQ")
"""Bytes of address space, seconds of processor time, threads that it may start, bytes of its request."""
REPORT = struct.Struct("id??")
MAX_DESCRIPTORS = 4
"""Of an item: its file, its pipe, and for a command what it reads, and what it makes."""
MAX_HELLO_BYTES = 4096
"""Of what a zygote or a host says of itself."""
VALUE, ERROR, END = "v", "e", "end"
PACKED_INPUTS, PACKED_CHARACTERS = 4096, 4096
"""How many are kept, of at most so many characters each: problems are sampled again and again."""
_MARSHAL_VERSION = 2
"""The last one whose bytes depend on values alone, not on who else refers to them."""
_LINE = re.compile(r"(v|e) (0|[1-9][0-9]{0,5}) (.*)")
_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


class Request(NamedTuple):
    """What an item is told. It crosses the border in one direction alone, from the side that is trusted, so it may be what Python reads
    with least work: each object that a fresh fork touches costs a page fault."""

    source: str
    entry: str | None
    """Function to call for each of `inputs`; None for a program."""
    inputs: tuple[bytes, ...]
    """Of `pack_arguments`."""
    stdin: str
    language: str | None
    step: int | str | None

    def pack(self) -> bytes:
        """The same bytes for equal requests."""
        return marshal.dumps(tuple(self), _MARSHAL_VERSION)


def unpack_request(data: bytes) -> Request:
    """What the service has packed."""
    return tuple.__new__(Request, marshal.loads(data))  # noqa: S302 - see `Request`


def pack_arguments(text: str) -> bytes:
    """The values of a canonical text, for the untrusted side."""
    return _pack_once(text) if len(text) <= PACKED_CHARACTERS else _pack(text)


def _pack(text: str) -> bytes:
    values: Any = decode(text)
    return marshal.dumps(values, _MARSHAL_VERSION)


_pack_once = lru_cache(PACKED_INPUTS)(_pack)


class Report(NamedTuple):
    """How an item ended."""

    code: int
    """Exit code, or the signal's number below zero."""
    cpu_seconds: float
    killed: bool
    """By order of the service."""
    spent: bool
    """All of its processor time."""


class TranscriptError(ValueError):
    """What an item wrote is no transcript; says why, without its words."""


class SolutionError(ValueError):
    """The solution raised on an input, or before its first."""


def read_transcript(data: bytes, inputs: int) -> list[str]:
    """The canonical text for each input.

    Raises:
        TranscriptError: it is not exactly one line for each input and the end marker.
        SolutionError: the solution raised.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise TranscriptError("bytes beyond ASCII") from None
    lines = text.split("\n")
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is not None and found[1] == ERROR and _TYPE.fullmatch(found[3]):
            raise SolutionError(found[3])
    if lines[-2:] != [END, ""] or lines.count(END) != 1:
        raise TranscriptError("no end marker, or text after it")
    values: list[str] = []
    for index, line in enumerate(lines[:-2]):
        found = _LINE.fullmatch(line)
        if found is None or found[1] != VALUE or int(found[2]) != index:
            raise TranscriptError(f"line {index + 1} is not the value of input {index}")
        values.append(found[3])
    if len(values) != inputs:
        raise TranscriptError(f"{len(values)} values for {inputs} inputs")
    return values
