"""Normal forms of answers to puzzles: two answers are the same answer where their forms are equal.

    "[[1, 2], [3, 4]]", "1 2\\n3 4" -> grid -> (("1", "2"), ("3", "4"))

None is the form of what no form allows. Nothing here evaluates text: every pattern is linear, and must match all of an answer.
"""

import re
from collections.abc import Hashable
from decimal import Decimal
from typing import cast

from pydantic import JsonValue

from rlvr_verifier.environments.strict_json import NotStrictJsonError, parse_json

MAX_DIGITS = 4_000
"""Python refuses to read longer integers."""
_INTEGER = re.compile(r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+|0|[1-9]\d*)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_HEXADECIMAL = re.compile(r"([+-]?)0x([0-9a-f]+)", re.ASCII | re.IGNORECASE)
_FRACTION = re.compile(r"\$?(?:\\d?frac\{(-?\d+)\}\{(-?\d+)\}|(-?\d+) ?/ ?(-?\d+))\$?", re.ASCII)
_PRODUCT = re.compile(r"\d+(?: ?[×*x·] ?\d+)*", re.ASCII)
_NESTED = re.compile(r"\[\s*\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*\s*\]")
_ROW = re.compile(r"\[([^\[\]]*)\]")
_ROLE = re.compile(r"(\w+) is an? (\w+)")


def text(answer: str) -> str:
    """Runs of white space are one space."""
    return " ".join(answer.split())


def folded(answer: str) -> str:
    """The same in any case."""
    return text(answer).casefold()


def compact(answer: str) -> str:
    """Without white space."""
    return "".join(answer.split())


def lines(answer: str) -> str:
    """Lines without blank ones, and with runs of white space as one."""
    return "\n".join(" ".join(line.split()) for line in answer.splitlines() if line.strip())


def integer(answer: str) -> int | None:
    """A whole number, perhaps with a comma before every three digits."""
    return int(answer.replace(",", "")) if len(answer) <= MAX_DIGITS and _INTEGER.fullmatch(answer) else None


def number(answer: str) -> Decimal | None:
    """A decimal number, perhaps with commas and an exponent of ten."""
    return Decimal(answer.replace(",", "")) if len(answer) <= MAX_DIGITS and _NUMBER.fullmatch(answer) else None


def hexadecimal(answer: str) -> int | None:
    """A whole number with `0x`."""
    found = _HEXADECIMAL.fullmatch(answer)
    return int(found[1] + found[2], 16) if found else None


def tokens(answer: str) -> tuple[str, ...]:
    """A list, with or without brackets, commas and quotes."""
    inner = answer.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return tuple(_unquoted(part) for part in inner.replace(",", " ").split())


def numbers(answer: str) -> tuple[Decimal, ...] | None:
    """A list of decimal numbers; commas part them."""
    found = tokens(answer)
    if not all(len(one) <= MAX_DIGITS and _PLAIN_NUMBER.fullmatch(one) for one in found):
        return None
    return tuple(map(Decimal, found))


def grid(answer: str) -> tuple[tuple[str, ...], ...]:
    """Rows of cells: a line each, or a list of lists."""
    rows = _ROW.findall(answer) if _NESTED.fullmatch(answer.strip()) else answer.splitlines()
    return tuple(tokens(row) for row in rows if row.strip())


def grid_of_digits(answer: str) -> tuple[tuple[str, ...], ...] | None:
    """Rows of digits; lines of nothing but signs of order, and signs between the digits, are part of the puzzle and left out."""
    if not all(cell.isdecimal() or cell in "<>∧∨^v" for row in grid(answer) for cell in row):
        return None
    rows = (tuple(cell for cell in row if cell.isdecimal()) for row in grid(answer))
    return tuple(row for row in rows if row)


def fraction(answer: str) -> tuple[int, int] | None:
    r"""Numerator and denominator, as `3/4` or `\frac{3}{4}`; not simplified."""
    found = _FRACTION.fullmatch(text(answer)) if len(answer) <= MAX_DIGITS else None
    if found is None:
        return None
    return (int(found[1]), int(found[2])) if found[1] else (int(found[3]), int(found[4]))


def factors(answer: str) -> tuple[int, ...] | None:
    """Factors of a product, in any order."""
    if len(answer) > MAX_DIGITS or not _PRODUCT.fullmatch(text(answer)):
        return None
    return tuple(sorted(int(one) for one in re.findall(r"\d+", answer)))


def roles(answer: str) -> Hashable:
    """Who is what: `Ann is a knight, and Ben is a knave.`, in any order, each once."""
    parts = re.split(r", and |, | and ", folded(answer).removesuffix("."))
    found = [_ROLE.fullmatch(part) for part in parts]
    said = {one[1]: one[2] for one in found if one}
    return frozenset(said.items()) if len(said) == len(parts) else None


def set_of_lists(answer: str) -> Hashable:
    """A JSON list of lists of strings, the lists in any order, each once."""
    rows = _lists(answer)
    return frozenset(rows) if rows is not None and len(set(rows)) == len(rows) else None


def groups(answer: str) -> Hashable:
    """A JSON list of lists of strings, all in any order."""
    rows = _lists(answer)
    return None if rows is None else tuple(sorted(tuple(sorted(row)) for row in rows))


def json_value(answer: str) -> JsonValue:
    """A JSON document; None for what is none."""
    try:
        return parse_json(answer)
    except NotStrictJsonError:
        return None


def _lists(answer: str) -> list[tuple[str, ...]] | None:
    rows = json_value(answer)
    if not isinstance(rows, list) or not all(isinstance(row, list) and all(isinstance(one, str) for one in row) for row in rows):
        return None
    return [tuple(cast("list[str]", row)) for row in rows]


def _unquoted(part: str) -> str:
    return part[1:-1] if len(part) > 2 and part[0] == part[-1] and part[0] in "'\"" else part
