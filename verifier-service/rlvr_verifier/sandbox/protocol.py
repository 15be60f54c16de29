"""What the service and a zygote say to each other, and how strictly the service reads what an item wrote.

    host -> service:   length, JSON {open, weak, faults}, where the sandbox is a container of its own
    zygote -> service: length, JSON {abi, pid, languages, missing} when it is warm
    service -> zygote: b"i" with a file and the write end of a pipe, limits;  b"k" to kill
    file -> item:      JSON {source, entry, inputs} or {source, stdin} or {language, step, stdin}
    zygote -> service: length, JSON {code, cpu, killed, spent} when the item has ended
    item -> pipe:      "v INDEX CANONICAL" or "e INDEX TYPE" for each input in order, then "end", then the end of the file

An item may write anything into its pipe. It is read to its end; a line that is missing, repeated or out of order, and a byte after the end
marker, refuse the whole item, so that no verdict depends on who wrote first.
"""

import re
import struct

LENGTH = struct.Struct("I")
LIMITS = struct.Struct("QdI")
"""Bytes of address space, seconds of processor time, threads that it may start."""
MAX_DESCRIPTORS = 4
"""Of an item: its file, its pipe, and for a command what it reads, and what it makes."""
MAX_REPORT_BYTES = 4096
"""Of what a zygote says of itself or of an item."""
VALUE, ERROR, END = "v", "e", "end"
_LINE = re.compile(r"(v|e) (0|[1-9][0-9]{0,5}) (.*)")
_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


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
