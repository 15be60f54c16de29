"""Scorers of our own for tasks of reasoning-gym whose right answers are many, or are numbers: answer, the library's entry -> right or not.

What an entry knows is in its `metadata`. Each reads all of an answer, and none calls the library.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from rlvr_verifier.environments import expressions, puzzle_forms
from rlvr_verifier.environments.expressions import NoValueError

Entry = Mapping[str, Any]
Scorer = Callable[[str, Entry], bool]
_MEASURE = re.compile(r"\(?\s*([^\s,()°]+)\s*(?:,\s*([^\s,()°]+)\s*)?\)?\s*°?")
_RATIO = re.compile(r"(\d{1,40})\s*/\s*(\d{1,40})", re.ASCII)


def makes_target(answer: str, entry: Entry) -> bool:
    """An expression of all the numbers, each once, is worth the target exactly; 24 where there is no other."""
    try:
        value, used = expressions.arithmetic_value(answer)
    except NoValueError:
        return False
    return value == entry["metadata"].get("target", 24) and sorted(used) == sorted(entry["metadata"]["numbers"])


def integrates(answer: str, entry: Entry) -> bool:
    """A closed form whose derivative is the integrand."""
    return expressions.is_antiderivative(answer, entry["metadata"]["integrand"], entry["metadata"]["variable"])


def solves_equation(answer: str, entry: Entry) -> bool:
    """All real solutions to four places, each once; `""` where there is none."""
    found, right = puzzle_forms.numbers(answer.replace('"', "")), puzzle_forms.numbers(str(entry["answer"]))
    if found is None or right is None:
        return False
    return _are_near(sorted(found), sorted(right), Decimal("0.0001"))


def measures(answer: str, entry: Entry) -> bool:
    """A point, an angle or a length that rounds to the library's."""
    found, right = _MEASURE.fullmatch(answer), _MEASURE.fullmatch(str(entry["answer"]))
    if found is None or right is None or (found[2] is None) is not (right[2] is None):
        return False
    pairs = [(puzzle_forms.number(found[place]), puzzle_forms.number(right[place])) for place in (1, 2) if right[place]]
    return all(one is not None and own is not None and abs(one - own) <= _half_unit(own) for one, own in pairs)


def is_probability(answer: str, entry: Entry) -> bool:
    """A fraction or a decimal number, right to three digits."""
    ratio, decimal = _RATIO.fullmatch(answer), puzzle_forms.number(answer)
    if (ratio is None and decimal is None) or (ratio is not None and not int(ratio[2])):
        return False
    found = Fraction(int(ratio[1]), int(ratio[2])) if ratio else Fraction(decimal or 0)
    right = Fraction(str(entry["answer"]))
    return abs(found - right) <= right / 1_000


def rounds_decimal(answer: str, entry: Entry) -> bool:
    """A decimal number that is right to one unit of the last digit that is asked for."""
    found, right = puzzle_forms.number(answer), Decimal(str(entry["answer"]))
    digits = re.search(r"maximum of (\d+) significant digits", str(entry["question"]))
    return found is not None and digits is not None and bool(abs(found - right) <= abs(right).scaleb(1 - int(digits[1])))


def rounds_power(answer: str, entry: Entry) -> bool:
    """A number whose first three digits are right."""
    found = puzzle_forms.number(answer)
    return found is not None and f"{found:.2e}" == f"{Decimal(str(entry['answer'])):.2e}"


def pools(answer: str, entry: Entry) -> bool:
    """A matrix of numbers, each within 0.01."""
    found, right = ([puzzle_forms.numbers(" ".join(row)) for row in puzzle_forms.grid(one)] for one in (answer, str(entry["answer"])))
    return len(found) == len(right) and all(
        row is not None and own is not None and _are_near(row, own, Decimal("0.01")) for row, own in zip(found, right, strict=True)
    )


def places_queens(answer: str, entry: Entry) -> bool:
    """One of the boards that complete the given one."""
    return puzzle_forms.grid(answer) in {puzzle_forms.grid(board) for board in entry["metadata"]["valid_answers"]}


def fills_kakurasu(answer: str, entry: Entry) -> bool:
    """A grid of 0 and 1 with the weighted sums."""
    rows, known = _whole_numbers(answer), entry["metadata"]
    if rows is None or len(rows) != known["n_rows"] or any(len(row) != known["n_cols"] for row in rows):
        return False
    if any(cell not in (0, 1) for row in rows for cell in row):
        return False
    columns = list(zip(*rows, strict=True))
    sums: tuple[list[int], list[int]] = (known["row_sums"], known["col_sums"])
    return ([_weighted(row) for row in rows], [_weighted(column) for column in columns]) == sums


def fills_survo(answer: str, entry: Entry) -> bool:
    """The given matrix, its empty cells filled with the given numbers, each once, so that the sums hold."""
    rows, known = _whole_numbers(answer), entry["metadata"]
    given: list[list[int]] = known["puzzle"]
    if rows is None or [len(row) for row in rows] != [len(row) for row in given]:
        return False
    cells = [pair for row, own in zip(rows, given, strict=True) for pair in zip(row, own, strict=True)]
    if any(own not in (0, cell) for cell, own in cells):
        return False
    if sorted(cell for cell, own in cells if own == 0) != sorted(known["candidate_numbers"]):
        return False
    return all(sum(line[:-1]) == line[-1] for line in (*rows, *zip(*rows, strict=True)))


def colors_graph(answer: str, entry: Entry) -> bool:
    """A JSON map of every vertex to a color, no two neighbors alike."""
    colors, known = puzzle_forms.json_value(answer), entry["metadata"]["puzzle"]
    if not isinstance(colors, dict) or set(colors) != {str(vertex) for vertex in known["vertices"]}:
        return False
    if any(type(color) is not int or color not in known["color_options"] for color in colors.values()):
        return False
    return all(colors[str(left)] != colors[str(right)] for left, right in known["edges"])


def _are_near(found: Iterable[Decimal], right: Iterable[Decimal], distance: Decimal) -> bool:
    left, own = list(found), list(right)
    return len(left) == len(own) and all(abs(one - other) <= distance for one, other in zip(left, own, strict=True))


def _half_unit(value: Decimal) -> Decimal:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    return Decimal(5).scaleb(exponent - 1)


def _weighted(line: Iterable[int]) -> int:
    return sum(place * cell for place, cell in enumerate(line, start=1))


def _whole_numbers(answer: str) -> list[list[int]] | None:
    rows = [[puzzle_forms.integer(cell) for cell in row] for row in puzzle_forms.grid(answer)]
    return None if any(cell is None for row in rows for cell in row) else [[cell or 0 for cell in row] for row in rows]
