"""Charts as inline SVG: no script, no font and no request, colours from the page's style sheet so that they follow light and dark.

    Line / Bar values -> a Frame that maps data to pixels -> SVG text

Colours are classes `c1` to `c6`; hovering a point shows its value (`<title>`). Text given to these functions is escaped here, so their
result may go into a page as it is.

Not covered: interaction, logarithmic axes, more than six series in one chart.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from rlvr_trainer.report.axes import Point, chunks, duration, number, padded, thinned, ticks

MAX_POINTS = 180
"""Of one line: more than that cannot be told apart at the width of a page."""
MAX_DOTS = 60
"""Points that are drawn as dots; more of them would hide the line, and error bars one another."""
CHARACTER_WIDTH = 6.4
"""Of an axis label at 11 px, generously."""

STEPS = "optimizer step"
"""What most charts are drawn over."""
Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Line:
    """One series."""

    name: str
    points: Sequence[Point]
    colour: int
    """1 to 6."""
    kind: Literal["line", "step", "points"] = "line"
    """`points`: diamonds on a thin dashed line."""
    errors: Sequence[float | None] = ()
    """Half lengths of error bars, one for each point, for `points`."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at `x`, with a word beside it: a new stage, or a resume."""

    x: float
    text: str


@dataclass(frozen=True, slots=True)
class Size:
    """Of a chart, in pixels of its own coordinates."""

    width: int = 760
    height: int = 280


WIDE = Size()
NARROW = Size(400, 260)
SMALL = Size(400, 190)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where data lie in the picture."""

    size: Size
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float
    top: float = 14.0
    right: float = 12.0
    bottom: float = 38.0

    def x(self, value: float) -> float:
        """Pixel column of a data value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.size.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Pixel row of a data value, clipped to the frame."""
        low, high = self.y_range
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.size.height - self.bottom - share * (self.size.height - self.top - self.bottom)


def line_chart(
    lines: Sequence[Line], *, label: str, y_format: Format = number, y_range: tuple[float, float] | None = None, whole_y: bool = False,
    marks: Sequence[Mark] = (), size: Size = WIDE, x_label: str = STEPS,
) -> str:  # fmt: skip
    """Lines over optimizer steps.

    Args:
        label: what the chart shows, for screen readers.
        y_range: unset: from 0 or the smallest value to the largest.
        whole_y: ticks of the vertical axis at whole numbers only.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return ""
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    y_range = y_range or padded(ys, floor=0.0 if min(ys) >= 0 else None)
    y_ticks = ticks(*y_range, wanted=5 if size.height > 200 else 4, whole=whole_y)
    left = 14 + CHARACTER_WIDTH * max(len(y_format(tick)) for tick in y_ticks)
    frame = Frame(size, x_range, y_range, left)
    parts = [_grid(frame, y_ticks, y_format, x_label), *_marks(frame, marks)]
    parts += [_draw(frame, line, y_format, x_label) for line in lines]
    return _svg(size, label, parts)


def stacked_bars(
    bars: Sequence[tuple[float, Mapping[str, float]]], names: Sequence[str], *, label: str, size: Size = WIDE,
    x_label: str = STEPS,
) -> str:  # fmt: skip
    """One bar of seconds a step, or for several steps their mean, in the order and colours of `names`.

    Args:
        bars: position and seconds by name; positions are equally spaced.
    """
    if not bars:
        return ""
    tallest = max(sum(parts.values()) for _, parts in bars) or 1.0
    gap = (bars[-1][0] - bars[0][0]) / (len(bars) - 1) if len(bars) > 1 else 1.0
    y_range = (0.0, tallest * 1.05)
    y_ticks = ticks(*y_range, wanted=4)
    left = 14 + CHARACTER_WIDTH * max(len(duration(tick)) for tick in y_ticks)
    frame = Frame(size, (bars[0][0] - gap * 0.6, bars[-1][0] + gap * 0.6), y_range, left)
    width = min(48.0, (frame.x(gap) - frame.x(0)) * 0.72)
    drawn = [_grid(frame, y_ticks, duration, x_label)]
    for position, parts in bars:
        below = 0.0
        for index, name in enumerate(names):
            seconds = parts.get(name, 0.0)
            if seconds > 0:
                top, foot = frame.y(below + seconds), frame.y(below)
                title = escape(f"{x_label} {number(position)}: {name} {duration(seconds)}")
                drawn.append(
                    f'<rect class="bar c{index + 1}" x="{frame.x(position) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
                    f'height="{max(0.0, foot - top):.1f}"><title>{title}</title></rect>'
                )
            below += seconds
    return _svg(size, label, drawn)


def _svg(size: Size, label: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {size.width} {size.height}" role="img" aria-label="{escape(label, quote=True)}">'
    return "".join((head, *parts, "</svg>"))


def _grid(frame: Frame, y_ticks: Sequence[float], y_format: Format, x_label: str) -> str:
    size, foot = frame.size, frame.size.height - frame.bottom
    parts = []
    for tick in y_ticks:
        row = frame.y(tick)
        parts.append(f'<line class="grid" x1="{frame.left:.1f}" x2="{size.width - frame.right:.1f}" y1="{row:.1f}" y2="{row:.1f}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 6:.1f}" y="{row + 3.8:.1f}" text-anchor="end">{escape(y_format(tick))}</text>')
    x_ticks = ticks(*frame.x_range, wanted=max(3, size.width // 64), whole=True)
    for tick in x_ticks:
        column = frame.x(tick)
        parts.append(f'<line class="tickmark" x1="{column:.1f}" x2="{column:.1f}" y1="{foot:.1f}" y2="{foot + 4:.1f}"/>')
        parts.append(f'<text class="tick" x="{column:.1f}" y="{foot + 16:.1f}" text-anchor="middle">{escape(number(tick))}</text>')
    parts.append(f'<line class="axis" x1="{frame.left:.1f}" x2="{size.width - frame.right:.1f}" y1="{foot:.1f}" y2="{foot:.1f}"/>')
    middle = (frame.left + size.width - frame.right) / 2
    parts.append(f'<text class="tick name" x="{middle:.1f}" y="{size.height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _marks(frame: Frame, marks: Sequence[Mark]) -> Iterator[str]:
    """Each word on the first row where it does not run into another."""
    taken: list[float] = []  # by row: where its last word ends
    for mark in sorted(marks, key=lambda mark: mark.x):
        column, width = frame.x(mark.x), CHARACTER_WIDTH * len(mark.text)
        right = column + width > frame.size.width
        start = column - 4 - width if right else column + 4
        row = next((row for row, end in enumerate(taken) if end < start), len(taken))
        taken[row : row + 1] = [start + width + 4]
        anchor, place = ("end", column - 4) if right else ("start", start)
        foot = frame.size.height - frame.bottom
        yield (
            f'<line class="mark" x1="{column:.1f}" x2="{column:.1f}" y1="{frame.top - 6:.1f}" y2="{foot:.1f}"/>'
            f'<text class="tick name" x="{place:.1f}" y="{frame.top - 2 + 12 * row:.1f}" text-anchor="{anchor}">{escape(mark.text)}</text>'
        )


def _draw(frame: Frame, line: Line, y_format: Format, x_label: str) -> str:
    if not line.points:
        return ""
    if line.kind == "points":
        return _diamonds(frame, line, y_format, x_label)
    points = _changes(line.points) if line.kind == "step" else thinned(line.points, MAX_POINTS)
    pixels = [(frame.x(x), frame.y(y)) for x, y in points]
    if line.kind == "step":
        pixels = [pixels[0], *(corner for (_, y), (x, y_next) in pairwise(pixels) for corner in ((x, y), (x, y_next)))]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
    dots = "".join(f'<circle class="dot c{line.colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6"/>' for x, y in points)
    hits = "".join(
        f'<circle class="hit" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="7">'
        f"<title>{_title(line, x_label, x, y, y_format)}</title></circle>"
        for x, y in points
    )
    return f'<path class="line c{line.colour}" d="{path}"/>{dots if len(points) <= MAX_DOTS else ""}{hits}'


def _diamonds(frame: Frame, line: Line, y_format: Format, x_label: str) -> str:
    parts = []
    measured = list(zip(line.points, line.errors or (None,) * len(line.points), strict=True))
    if len(measured) > MAX_DOTS:  # every n-th, and the last: a mean of evaluations would be none of them
        measured = [part[-1] for part in (measured[:1], *chunks(measured[1:], MAX_DOTS - 1))]
    if len(measured) > 1:
        path = "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for (x, y), _ in measured)
        parts.append(f'<path class="line thin c{line.colour}" d="{path}"/>')
    for (x, y), error in measured:
        column, row = frame.x(x), frame.y(y)
        title = _title(line, x_label, x, y, y_format)
        if error:
            title += escape(f" ± {y_format(error)}")
            parts.append(
                f'<line class="error c{line.colour}" x1="{column:.1f}" x2="{column:.1f}" y1="{frame.y(y - error):.1f}" '
                f'y2="{frame.y(y + error):.1f}"/>'
            )
        shape = f"M{column:.1f} {row - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"
        parts.append(f'<path class="diamond c{line.colour}" d="{shape}"><title>{title}</title></path>')
    return "".join(parts)


def _changes(points: Sequence[Point]) -> list[Point]:
    """The points at which the value changes, and both ends: a mean of two levels would be none."""
    inner = [point for before, point in pairwise(points) if before[1] != point[1]]
    return list(dict.fromkeys((points[0], *inner, points[-1])))


def _title(line: Line, x_label: str, x: float, y: float, y_format: Format) -> str:
    return escape(f"{line.name}, {x_label} {number(x)}: {y_format(y)}")
