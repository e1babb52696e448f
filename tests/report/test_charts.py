from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atoll.report.charts import (
    Cell,
    Part,
    Series,
    cell_grid,
    dot_rows,
    line_chart,
    shown,
    stacked_columns,
    stacked_rows,
    ticks,
)


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def hovers(svg: str) -> list[str | None]:
    return [title.text for title in parsed(svg).iter("title")][1:]


@example(0.0, 5e-324)
@example(1e6, 1e-9)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_the_range_in_equal_round_steps(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    step = marks[1] - marks[0]
    slack = 1e-6 * (abs(low) + span + 1)
    assert marks[0] <= low + slack
    assert marks[-1] >= low + span - slack
    assert 2 <= len(marks) <= 12
    assert all(math.isclose(b - a, step, rel_tol=1e-3, abs_tol=slack) for a, b in pairwise(marks))


def test_every_chart_is_an_image_with_a_name() -> None:
    charts = [
        line_chart("a & b", [Series("s", "c0", [(1, 2.0), (2, 3.0)])], "round"),
        dot_rows("a & b", [("x", [Part("p", "c0", 1.0)])], "AUC"),
        stacked_rows("a & b", [("x", [Part("p", "c0", 1.0)])]),
        stacked_columns("a & b", [("x", [Part("p", "c0", 1.0)])], "round"),
        cell_grid("a & b", ["x"], ["1"], [Cell(0, 0, "c0", 1.0, "t")], "round"),
    ]
    for chart in charts:
        root = parsed(chart)
        assert (root.get("role"), root.get("aria-label")) == ("img", "a & b")
        assert root[0].tag == "title"
        assert "nan" not in chart


def test_a_chart_without_values_says_so() -> None:
    empty = [
        line_chart("t", [Series("s", "c0", [(1, None)])], "round"),
        line_chart("t", [], "round"),
        dot_rows("t", [], "x"),
        stacked_rows("t", [("a", [])]),
        stacked_columns("t", [], "x"),
    ]
    assert all("no values" in chart for chart in empty)


def test_a_missing_value_leaves_a_gap_in_the_line() -> None:
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, None), (4.0, 1.0), (5.0, 2.0)]
    path = parsed(line_chart("t", [Series("s", "c0", points)], "round")).find(".//path")
    assert path is not None
    assert re.sub("[^ML]", "", path.get("d") or "") == "MLML"


def test_higher_values_lie_higher_and_carry_their_title() -> None:
    chart = line_chart("t", [Series("loss", "c0", [(1.0, 0.0), (2.0, 10.0)])], "round")
    low, high = (float(dot.get("cy") or 0) for dot in parsed(chart).iter("circle"))
    assert high < low
    assert hovers(chart) == ["loss: 0 at 1", "loss: 10 at 2"]


def test_a_long_line_is_thinned_but_keeps_its_last_point() -> None:
    points = [(float(i), float(i)) for i in range(5000)]
    chart = line_chart("t", [Series("s", "c0", points)], "round")
    assert len(chart) < 20_000
    assert "s: 4,999 at 4,999" in hovers(chart)


def test_bars_are_as_long_as_their_values() -> None:
    rows = [("a", [Part("x", "c0", 30.0), Part("y", "c1", 10.0)]), ("b", [Part("x", "c0", 20.0)])]
    widths = [float(r.get("width") or 0) for r in parsed(stacked_rows("t", rows)).iter("rect")]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.2)
    assert widths[2] == pytest.approx(2 * widths[1], abs=0.2)
    equal = [
        float(r.get("width") or 0) for r in parsed(stacked_rows("t", rows, share=True)).iter("rect")
    ]
    assert equal[0] + equal[1] == pytest.approx(equal[2], abs=0.2)


def test_columns_stack_upwards_without_overlap() -> None:
    chart = stacked_columns("t", [("r", [Part("x", "c0", 3.0), Part("y", "c1", 1.0)])], "round")
    lower, upper = parsed(chart).iter("rect")
    bottom_of_upper = float(upper.get("y") or 0) + float(upper.get("height") or 0)
    assert bottom_of_upper == pytest.approx(float(lower.get("y") or 0), abs=0.11)


def test_long_names_are_cut_and_kept_in_the_hover() -> None:
    name = "a hospital with a very long name"
    chart = stacked_rows("t", [(name, [Part("x", "c0", 1.0)])])
    assert "a hospital with a ve…" in chart
    assert name in hovers(chart)


def test_numbers_are_short() -> None:
    assert [shown(v) for v in (0.0, 1.0, 0.05, 1234.5, math.nan, math.inf)] == [
        "0", "1", "0.05", "1,234", "-", "-",
    ]  # fmt: skip
