"""Axes and drawings: ticks inside their range, numbers that people read, SVG that parses and places data where they belong."""

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_trainer.report.axes import chunks, duration, number, padded, percent, thinned, ticks
from rlvr_trainer.report.charts import MAX_DOTS, MAX_POINTS, Line, Mark, line_chart, stacked_bars

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(FINITE, st.floats(1e-6, 1e9), st.integers(2, 12), st.booleans())
def test_ticks_are_evenly_spaced_inside_and_about_as_many_as_wanted(low, width, wanted, whole):
    high = low + width
    found = ticks(low, high, wanted, whole)
    slack = 1e-6 * max(1.0, abs(low), width)
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert len(found) <= wanted + 2
    if whole:
        assert all(tick == round(tick) for tick in found)
    else:
        assert len(found) >= wanted // 3
    gaps = [b - a for a, b in pairwise(found)]
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-3, abs_tol=slack) for gap in gaps)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (0.5, "0.5"), (12.345, "12.3"), (100.0, "100"), (1234.5, "1,234"), (1e-5, "10⁻⁵"), (2.5e-5, "2.5·10⁻⁵"),
     (-0.1, "−0.1"),     (3e7, "3·10⁷"), (-2e-7, "−2·10⁻⁷"), (0.0123, "0.0123")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_ticks_of_tiny_values_are_apart():
    assert ticks(0.0, 4.2e-14, 4) == [0.0, 2e-14, 4e-14]
    assert padded([1e-14, 3e-14], floor=0.0) == (0.0, pytest.approx(3.18e-14))


def test_shares_and_durations_do_not_break_from_their_units():
    assert [percent(0.154), percent(0.1546, 1), percent(-0.02)] == ["15\u00a0%", "15.5\u00a0%", "−2\u00a0%"]
    shown = [duration(seconds).replace("\u00a0", "_") for seconds in (0.042, 59, 60, 250, 7500)]
    assert shown == ["0.042_s", "59_s", "1_min", "4_min_10_s", "2_h_5_min"]


@given(st.lists(FINITE, min_size=1), st.sampled_from([None, 0.0]))
def test_a_padded_range_holds_its_values_and_is_never_empty(values, floor):
    low, high = padded(values, floor)
    assert low < high
    assert low <= min(values)
    assert max(values) <= high


@given(st.lists(st.integers(), max_size=200), st.integers(1, 50))
def test_chunks_keep_every_item_in_order(items, count):
    parts = chunks(items, count)
    assert [item for part in parts for item in part] == items
    assert len(parts) == min(count, len(items))
    assert all(parts)


def test_thinned_points_are_means_of_neighbours():
    assert thinned([(1, 2), (2, 4), (3, 6), (4, 8)], 2) == [(1.5, 3), (3.5, 7)]
    assert thinned([(1, 2)], 2) == [(1, 2)]


def drawn(svg):
    return ElementTree.fromstring(svg)


def test_a_line_goes_through_its_data_and_escapes_its_words():
    svg = line_chart(
        [Line("<b>&", [(1, 0.0), (3, 1.0)], 1), Line("held", [(1, 0.5), (3, 0.5)], 3, "points", [0.1, None])],
        label='"quoted" <label>', y_range=(0.0, 1.0), marks=[Mark(2, "<i>")],
    )  # fmt: skip
    root = drawn(svg)
    assert root.get("aria-label") == '"quoted" <label>'
    line, thin, *_ = [element for element in root.iter("path") if "line" in element.get("class")]
    (x0, y0), (x1, y1) = [tuple(map(float, corner.split())) for corner in line.get("d")[1:].split("L")]
    assert x0 < x1
    assert y0 > y1  # up is more
    (_, middle), _ = [tuple(map(float, corner.split())) for corner in thin.get("d")[1:].split("L")]
    assert middle == pytest.approx((y0 + y1) / 2, abs=0.1)
    titles = [element.text for element in root.iter("title")]
    assert "<b>&, optimizer step 3: 1" in titles
    assert "held, optimizer step 1: 0.5 ± 0.1" in titles
    assert sum("error" in (element.get("class") or "") for element in root.iter("line")) == 1
    assert "<i>" in [element.text for element in root.iter("text")]


def test_levels_are_drawn_as_steps_at_their_changes():
    root = drawn(line_chart([Line("level", [(step, int(step > 5)) for step in range(1, 500)], 1, "step")], label="l", y_range=(0, 1)))
    (path,) = root.iter("path")
    rows = [float(corner.split()[1]) for corner in path.get("d")[1:].split("L")]
    assert len(set(rows)) == 2
    assert len(list(root.iter("circle"))) <= 6


def test_long_series_are_thinned():
    long = [(step, step / 2000) for step in range(2000)]
    root = drawn(line_chart([Line("a", long, 1), Line("b", long, 2, "points")], label="l"))
    assert len(list(root.iter("circle"))) == MAX_POINTS
    assert len([element for element in root.iter("path") if element.get("class").startswith("diamond")]) == MAX_DOTS


@pytest.mark.parametrize("points", [[(5, 3.0)], [(5, 0.0), (6, 0.0)], [(0, -1.0), (1, 1e-9)]])
def test_flat_and_single_series_can_be_drawn(points):
    assert drawn(line_chart([Line("a", points, 1)], label="l")) is not None


def test_nothing_draws_nothing():
    assert line_chart([Line("a", [], 1)], label="l") == ""
    assert stacked_bars([], ["a"], label="l") == ""


def test_stacked_bars_have_heights_in_proportion():
    root = drawn(stacked_bars([(1, {"a": 1.0, "b": 3.0}), (2, {"a": 2.0, "b": 0.0})], ["a", "b"], label="l"))
    heights = [float(element.get("height")) for element in root.iter("rect")]
    assert len(heights) == 3
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.3)
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.3)
