r"""One spelling of a value, with its exact type: what crosses the border of the sandbox, in both directions.

    n  t  f  i12  d0x1.8p+1  s"text"  b"00ff"  [a,b]  (a,b)  {a,b}  <a:b>  and /a,b\ for a frozenset

Sets and dicts are sorted by the spelling of their members, so equal values have equal spellings, whatever the hash seed and the order of
insertion. Only exact built-in types have one: a subclass that says it equals everything has none. The parser, which reads what an enemy may
have written, knows no names, makes no objects but these, and has bounds on depth and numbers. NaN is spelled `dnan` and equals nothing.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 64
MAX_DIGITS = 4_000
"""Of an integer; below the 4,300 from which Python itself refuses to convert."""
_SCALAR = re.compile(r'i(-?(?:0|[1-9][0-9]*))|d(nan|inf|-inf|-?0x[01]\.[0-9a-f]+p[+-][0-9]+)|s("(?:[^"\\\x00-\x1f]|\\.)*")|b"([0-9a-f]*)"')
_BRACKETS = {"[": "]", "(": ")", "{": "}", "/": "\\", "<": ">"}
Value = object


class NotCanonicalError(ValueError):
    """A value has no spelling, or a text is not the spelling of a value; says why, without the value."""


def encode(value: Value, depth: int = 0) -> str:
    """The spelling of a value.

    Raises:
        NotCanonicalError: it, or something in it, is of another type, too deep, or too large a number.
    """
    if depth > MAX_DEPTH:
        raise NotCanonicalError(f"nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None:
        return "n"
    if kind is bool:
        return "t" if value else "f"
    if kind is int:
        if int.bit_length(value) > MAX_DIGITS * 3:  # type: ignore[arg-type]
            raise NotCanonicalError(f"an integer of more than about {MAX_DIGITS} digits")
        return f"i{value}"
    if kind is float:
        return f"d{float.hex(value)}"  # type: ignore[arg-type]
    if kind is str:
        return f"s{json.dumps(value)}"
    if kind is bytes:
        return f'b"{bytes.hex(value)}"'  # type: ignore[arg-type]
    return _encode_container(value, kind, depth + 1)


def _encode_container(value: Value, kind: type, depth: int) -> str:
    # The methods of the types themselves: a value cannot answer for itself.
    if kind is list:
        return f"[{','.join([encode(item, depth) for item in _members(list, value)])}]"
    if kind is tuple:
        return f"({','.join([encode(item, depth) for item in _members(tuple, value)])})"
    if kind is set:
        return f"{{{','.join(sorted([encode(item, depth) for item in _members(set, value)]))}}}"
    if kind is frozenset:
        return f"/{','.join(sorted([encode(item, depth) for item in _members(frozenset, value)]))}\\"
    if kind is dict:
        items: Iterator[tuple[Value, Value]] = iter(dict.items(value))  # type: ignore[arg-type]
        pairs = [f"{encode(key, depth)}:{encode(item, depth)}" for key, item in items]
        return f"<{','.join(sorted(pairs))}>"
    raise NotCanonicalError(f"a value of type {kind.__name__[:40]!r}")


def _members(kind: Any, value: Value) -> Iterator[Value]:
    members: Iterator[Value] = kind.__iter__(value)
    return members


def decode(text: str) -> Value:
    """The value of a spelling.

    Raises:
        NotCanonicalError: it is not exactly what `encode` writes of some value.
    """
    value, end = _decode(text, 0, 0)
    if end != len(text):
        raise NotCanonicalError(f"text after the value, at character {end}")
    if encode(value) != text:
        raise NotCanonicalError("not the one spelling of its value")
    return value


def _decode(text: str, at: int, depth: int) -> tuple[Value, int]:
    if depth > MAX_DEPTH:
        raise NotCanonicalError(f"nested deeper than {MAX_DEPTH}")
    first = text[at : at + 1]
    if first in ("n", "t", "f"):
        return {"n": None, "t": True, "f": False}[first], at + 1
    if first in _BRACKETS:
        return _decode_container(text, at, depth)
    found = _SCALAR.match(text, at)
    if found is None:
        raise NotCanonicalError(f"no value at character {at}")
    integer, number, string, data = found.groups()
    try:
        if integer is not None:
            if len(integer) > MAX_DIGITS:
                raise NotCanonicalError(f"an integer of more than {MAX_DIGITS} digits")
            return int(integer), found.end()
        if number is not None:
            return float.fromhex(number), found.end()
        return (json.loads(string) if string is not None else bytes.fromhex(data)), found.end()
    except (ValueError, OverflowError) as error:
        raise NotCanonicalError(f"no value at character {at}") from error


def _decode_container(text: str, at: int, depth: int) -> tuple[Value, int]:
    opening = text[at]
    closing = _BRACKETS[opening]
    items: list[Value] = []
    at += 1
    while text[at : at + 1] != closing:
        if items:
            at = _expect(text, at, ",")
        item, at = _decode(text, at, depth + 1)
        if opening == "<":
            value, at = _decode(text, _expect(text, at, ":"), depth + 1)
            item = (item, value)
        items.append(item)
    try:
        made: dict[str, type] = {"[": list, "(": tuple, "{": set, "/": frozenset, "<": dict}
        return made[opening](items), at + 1
    except TypeError as error:
        raise NotCanonicalError("a member of a set, or a key, that cannot be hashed") from error


def _expect(text: str, at: int, character: str) -> int:
    if text[at : at + 1] != character:
        raise NotCanonicalError(f"no {character!r} at character {at}")
    return at + 1


def equal(expected: Value, found: Value, tolerance: float) -> bool:
    """Whether two decoded values are equal, type by type; floats within a relative tolerance, and NaN never."""
    if type(expected) is not type(found):
        return False
    if isinstance(expected, float) and isinstance(found, float):
        return expected == found or math.isclose(expected, found, rel_tol=tolerance, abs_tol=0.0)
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(expected) == len(found) and all(equal(one, other, tolerance) for one, other in zip(expected, found, strict=True))
    if isinstance(expected, dict) and isinstance(found, dict):
        # Keys are compared with their types, too: 1, 1.0 and True are one key to a dict.
        names = {encode(key): value for key, value in expected.items()}
        others = {encode(key): value for key, value in found.items()}
        same_keys = names.keys() == others.keys() and not any(map(_has_nan, expected))
        return same_keys and all(equal(value, others[key], tolerance) for key, value in names.items())
    return encode(expected) == encode(found) and not _has_nan(expected)


def _has_nan(value: Value) -> bool:
    """Whether a NaN is a value that can be hashed, or is in it."""
    if isinstance(value, (tuple, set, frozenset)):
        return any(map(_has_nan, value))
    return isinstance(value, float) and math.isnan(value)
