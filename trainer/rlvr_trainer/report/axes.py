"""The arithmetic of charts: round ticks, short numbers, and long series thinned to what a page can show. Pure."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import TypeVar

Point = tuple[float, float]
"""x and y in data units."""

NO_BREAK = "\u00a0"
"""Between a number and its unit."""
ItemT = TypeVar("ItemT")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def ticks(low: float, high: float, wanted: int = 5, whole: bool = False) -> list[float]:
    """About `wanted` round numbers from `low` to `high`, both inside; steps are 1, 2 or 5 times a power of ten.

    Args:
        whole: only whole numbers.
    """
    if high <= low:
        return [low]
    raw = (high - low) / max(1, wanted)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def padded(values: Sequence[float], floor: float | None = None) -> tuple[float, float]:
    """A range that holds all values with some air above, starting at `floor` when that is given; never empty."""
    low = min(values) if floor is None else min(floor, *values)
    high = max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # flat; small values that differ are not
        high = low + (abs(low) * 0.1 or 1.0)
    air = (high - low) * 0.06
    return (low if floor is not None else low - air), high + air


def thinned(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` points: the means of equally many neighbours, when there are more."""
    if len(points) <= limit:
        return list(points)
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in chunks(points, limit)]


def chunks(items: Sequence[ItemT], count: int) -> list[Sequence[ItemT]]:
    """`items` in `count` consecutive parts of nearly equal size; fewer when there are fewer items."""
    count = min(count, len(items))
    bounds = [round(part * len(items) / count) for part in range(count + 1)] if count else []
    return [items[start:end] for start, end in pairwise(bounds)]


def number(value: float) -> str:
    """A number for people: three significant digits, small and large ones as powers of ten."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return power if mantissa == "1" else f"{mantissa}·{power}".replace("-", "−")
    if size >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    digits = max(0, 2 - math.floor(math.log10(size)))
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def percent(value: float, digits: int = 0) -> str:
    """A share as per cent."""
    return f"{value * 100:.{digits}f}{NO_BREAK}%".replace("-", "−")


def duration(seconds: float) -> str:
    """A time span for people: `0.42 s`, `12.3 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{number(seconds)}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s".replace(" ", NO_BREAK) if rest else f"{minutes}{NO_BREAK}min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min".replace(" ", NO_BREAK) if minutes else f"{hours}{NO_BREAK}h"
