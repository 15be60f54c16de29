"""The canonical spelling: one for each value, none for what only looks like one, and a parser that an enemy may feed."""

import marshal
import math
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_verifier.sandbox.canonical import MAX_DEPTH, NotCanonicalError, decode, encode, equal
from rlvr_verifier.sandbox.protocol import PACKED_CHARACTERS, SolutionError, TranscriptError, pack_arguments, read_transcript

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
HASHABLE = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4), max_leaves=10)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(HASHABLE, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=4)
    ),
    max_leaves=30,
)


@given(VALUES)
def test_a_value_is_read_back_with_its_types(value: object) -> None:
    text = encode(value)
    assert encode(decode(text)) == text
    assert equal(value, decode(text), 0.0)


@given(VALUES, VALUES)
def test_different_values_have_different_spellings(one: object, other: object) -> None:
    assert (encode(one) == encode(other)) is equal(one, other, 0.0) or 0.0 in flatten(one)


@given(VALUES)
def test_packed_arguments_are_the_same_values(value: object) -> None:
    text = encode((value,))
    assert encode(marshal.loads(pack_arguments(text))) == text


def test_packed_arguments_are_the_same_bytes_in_every_process() -> None:
    text = encode(({f"name {n}" for n in range(50)}, {"b": 1, "a": frozenset("xyz")}, "x" * PACKED_CHARACTERS))
    program = "import sys; from rlvr_verifier.sandbox.protocol import pack_arguments; print(pack_arguments(sys.argv[1]).hex())"
    packed = {
        subprocess.run(
            [sys.executable, "-c", program, text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert packed == {pack_arguments(text).hex().encode() + b"\n"}


def flatten(value: object) -> list[object]:
    """Everything in a value: 0.0 and -0.0 are equal, and are spelled differently."""
    if isinstance(value, dict):
        return [part for pair in value.items() for part in flatten(list(pair))]
    return [part for item in value for part in flatten(item)] if isinstance(value, list | tuple | set | frozenset) else [value]


@given(st.text(alphabet='ntfid0123456789s"b[](){}<>:,/\\x.p+-e', max_size=40))
def test_the_parser_takes_its_own_spelling_only(text: str) -> None:
    try:
        value = decode(text)
    except NotCanonicalError:
        return
    assert encode(value) == text


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, 1.0), (0, False), ([1], (1,)), ({1}, frozenset({1})), ("1", 1), (b"a", "a"), ({1: 2}, {True: 2}), ([1], [True])],
)
def test_types_are_compared_exactly(one: object, other: object) -> None:
    assert not equal(one, decode(encode(other)), 1e-9)


def test_floats_are_compared_within_a_relative_tolerance_and_nan_with_nothing() -> None:
    assert equal(0.3, 0.1 + 0.2, 1e-9)
    assert not equal(0.3, 0.1 + 0.2, 0.0)
    assert not equal(0.00000012, 0.00000034, 1e-9), "no absolute tolerance: small numbers are not all zero"
    assert not equal(math.nan, decode("dnan"), 1e-9)
    assert not equal([math.nan], [math.nan], 1e-9)
    assert not equal({math.inf}, {-math.inf}, 1e-9)
    assert not equal({(1, math.nan)}, {(1, math.nan)}, 1e-9)
    assert not equal({math.nan: 1}, {math.nan: 1}, 1e-9)
    assert equal(["dnan"], ["dnan"], 1e-9), "a text with these letters is no NaN"
    assert equal({"dnan", b"dnan"}, {"dnan", b"dnan"}, 1e-9)
    assert equal({"a": [1.0, (math.inf,)]}, {"a": [1.0 + 1e-12, (math.inf,)]}, 1e-9)


class Everything(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        Everything(3),
        [Everything(3)],
        {Everything(3): 1},
        object(),
        lambda: 1,
        int,
        1j,
        bytearray(b"x"),
        range(3),
        nested(MAX_DEPTH + 1),
        pytest.param(10**5000, id="large"),
    ],
)
def test_what_has_no_spelling(value: Any) -> None:
    with pytest.raises(NotCanonicalError):
        encode(value)


@pytest.mark.parametrize(
    "text",
    ["", "i01", "i-0", "i+1", "i١", "d0x1p+0", "dNaN", "[i1", "[i1,]", "[,i1]", "{i2,i1}", "{i1,i1}", "<i1:i1,i1:i2>", "i1 ", " i1", "{[]}",
     "<[]:i1>", 's"\n"', 's"\\q"', 'b"0"', 'b"GG"', "[" * 100_000, "i" + "9" * 5_000, "__import__('os')"],
)  # fmt: skip
def test_what_is_no_spelling(text: str) -> None:
    with pytest.raises(NotCanonicalError):
        decode(text)


def test_a_transcript_has_one_line_for_each_input_and_nothing_after_its_end() -> None:
    assert read_transcript(b"v 0 i1\nv 1 i2\nend\n", 2) == ["i1", "i2"]
    assert read_transcript(b"end\n", 0) == []
    with pytest.raises(SolutionError, match="ZeroDivisionError"):
        read_transcript(b"v 0 i1\ne 1 ZeroDivisionError\nend\n", 2)


@pytest.mark.parametrize(
    "data",
    [b"", b"end", b"v 0 i1\n", b"v 0 i1\nend\nx", b"v 0 i1\nend\nend\n", b"v 0 i1\nend\nv 0 i1\nend\n", b"v 0 i1\nv 0 i1\nend\n",
     b"v 1 i1\nend\n", b"v 0 i1\nv 1 i1\nend\n", b"v 00 i1\nend\n", b"v 0 \xff\nend\n", b"\nv 0 i1\nend\n", b"end\nv 0 i1\nend\n",
     b"V 0 i1\nend\n", b"e 0 a b\nend\n"],
)  # fmt: skip
def test_what_is_no_transcript(data: bytes) -> None:
    with pytest.raises(TranscriptError):
        read_transcript(data, 1)
