"""What comes out of the sandbox: spellings of values, and the lines that an item writes."""

import math
import re

from rlvr_verifier.sandbox.canonical import NotCanonicalError, Value, decode, encode, equal
from rlvr_verifier.sandbox.protocol import SolutionError, TranscriptError, read_transcript
from tests.fuzz.target import Target, text_of

MAX_INPUTS = 8


def check_canonical(data: bytes) -> None:
    """What is read is spelled exactly so, and equals itself unless there is a NaN in it."""
    text = text_of(data)
    try:
        value = decode(text)
    except NotCanonicalError:
        return
    assert encode(value) == text
    assert equal(value, decode(text), 0.0) is not has_nan(value)
    assert not equal(value, [value], 0.0)


def has_nan(value: Value) -> bool:
    """Whether a NaN is somewhere in a value."""
    if isinstance(value, dict):
        return any(has_nan(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(has_nan, value))
    return isinstance(value, float) and math.isnan(value)


def check_transcript(data: bytes) -> None:
    """The first byte says how many inputs there were. What is read is one line for each of them, the end marker, and not a byte more."""
    inputs, written = (data[0] if data else 0) % MAX_INPUTS, data[1:]
    try:
        values = read_transcript(written, inputs)
    except TranscriptError:
        return
    except SolutionError as error:
        assert re.fullmatch(r"[A-Za-z0-9_]{1,40}", str(error)), error
        return
    assert len(values) == inputs
    assert written == "".join([*(f"v {index} {value}\n" for index, value in enumerate(values)), "end\n"]).encode()


TARGETS = {
    "canonical": Target(
        check_canonical,
        (
            "n",
            "[t,f,i-12,d0x1.8000000000000p+1,dnan,d-inf]",
            's"dnan \\u00e9\\n"',
            'b"00ff"',
            '({i1,i2},<s"a":[i1],s"b":n>,/i3,i4\\)',
            "<dnan:i1>",
            "[[[[]]],()]",
            "{(dnan,i1)}",
        ),
        ("d0x1.0000000000000p+0", "d0x0.0p+0", "dnan", "dinf", 's"', 'b"', "[", "]", "{", "}", "<", ">", "/", "\\", ":", ",", "\\ud800"),
    ),
    "transcript": Target(
        check_transcript,
        ("\x00end\n", "\x01v 0 i1\nend\n", '\x03v 0 [i1,i2]\nv 1 s"v 2"\nv 2 n\nend\n', "\x02v 0 i1\ne 1 ZeroDivisionError\nend\n"),
        ("v 0 ", "v 1 ", "e 0 ", "end\n", "\nend\n", "\r", "\x1c", "\x0b"),
    ),
}
