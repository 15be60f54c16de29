"""JSON as RFC 8259 has it and nothing more, of bounded depth and with bounded numbers: what a person, a program and a validator agree on.

Refused besides malformed text: a key twice, NaN and Infinity, numbers that a double does not hold or of more than 100 digits, and nesting
beyond 64. Not covered: lone surrogates, which are characters here.
"""

import json
import math

from pydantic import JsonValue

MAX_DEPTH = 64
MAX_DIGITS = 100


class NotStrictJsonError(ValueError):
    """The text is no such document; the message says why, and nothing of the text."""


def parse_json(text: str) -> JsonValue:
    """The one document that a text is, surrounding space aside.

    Raises:
        NotStrictJsonError: it is something else, or more.
    """
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_floating)
    except json.JSONDecodeError as error:
        raise NotStrictJsonError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise NotStrictJsonError(f"it is nested more than {MAX_DEPTH} deep") from None
    if _is_deeper(value, MAX_DEPTH):
        raise NotStrictJsonError(f"it is nested more than {MAX_DEPTH} deep")
    return value


def same(left: JsonValue, right: JsonValue) -> bool:
    """Whether two documents are equal as JSON: 1 is 1.0, and neither is true; the order of keys does not count."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def at_pointer(document: JsonValue, pointer: str) -> JsonValue:
    """The value at a JSON pointer (RFC 6901).

    Raises:
        LookupError: there is none.
    """
    value = document
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and key.isascii() and key.isdigit() and len(key) < 10:
            value = value[int(key)]
        elif isinstance(value, dict):
            value = value[key]
        else:
            raise LookupError(pointer)
    return value


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotStrictJsonError("an object has a key twice")
    return found


def _constant(_: str) -> JsonValue:
    raise NotStrictJsonError("NaN and Infinity are no JSON")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise NotStrictJsonError(f"a number has more than {MAX_DIGITS} digits")
    return int(text)


def _floating(text: str) -> float:
    value = float(text) if len(text) <= MAX_DIGITS else math.inf
    if math.isinf(value):
        raise NotStrictJsonError(f"a number has more than {MAX_DIGITS} characters, or is beyond what a double holds")
    return value


def _is_deeper(value: JsonValue, limit: int) -> bool:
    layer: list[JsonValue] = [value]
    for _ in range(limit + 1):
        layer = [below for one in layer if isinstance(one, list | dict) for below in (one.values() if isinstance(one, dict) else one)]
        if not layer:
            return False
    return True
