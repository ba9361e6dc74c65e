"""Pictures are XML whatever they show, and what they show stands where it belongs."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.report import plot

SVG = "{http://www.w3.org/2000/svg}"
# what XML can hold
names = st.text(
    st.characters(min_codepoint=32, exclude_categories=("Cs", "Cn"), exclude_characters="\ufffe\uffff\x7f"),
    max_size=20,
)
points = st.lists(st.tuples(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9)), max_size=5)


def texts(svg: str) -> list[str]:
    return [each.text for each in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314 - made here


@given(st.dictionaries(names, points, min_size=1, max_size=10), st.booleans(), st.booleans(), st.booleans())
def test_every_point_is_drawn_within_the_picture(lines, log, dots, bare):
    if not any(lines.values()):
        with pytest.raises(ValueError, match="nothing to plot"):
            plot.line_plot("t", "x", "y", lines, log=log)
        return
    root = ET.fromstring(plot.line_plot("<t>", "x&", "y", lines, log=log, dots=dots, bare=bare))  # noqa: S314 - made here
    _, _, width, height = map(float, root.get("viewBox").split())
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == sum(map(len, lines.values()))
    for circle in circles:
        assert -0.1 <= float(circle.get("cx")) <= width + 0.1
        assert -0.1 <= float(circle.get("cy")) <= height + 0.1


def test_a_logarithmic_axis_leaves_out_what_it_has_no_place_for():
    svg = plot.line_plot("t", "x", "y", {"a": [(1, 0.0), (2, 5.0), (-1, 3.0)]}, log=True)
    assert svg.count("<circle") == 1


def test_lines_without_points_keep_the_colours_of_the_others():
    svg = plot.line_plot("t", "x", "y", {"a": [], "b": [(1, 1)]}, bare=True)
    assert 'class="s1"' in svg
    assert 'class="s0"' not in svg
    assert "2" in texts(svg)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_lie_on_the_axis_and_are_few(low, high, is_log):
    axis = plot._axis([min(low, high), max(low, high)], is_log=is_log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 14
    assert all(-0.01 <= axis.place(tick) <= 1.01 for tick in ticks)
    assert ticks == sorted(ticks)


def test_negative_values_have_a_place_on_a_linear_axis():
    svg = plot.line_plot("t", "x", "y", {"a": [(1, -0.02), (2, 0.01)]})
    assert any(text.startswith("-0.0") for text in texts(svg))


def test_a_bar_is_as_long_as_its_parts_and_says_their_sum():
    svg = plot.bars("t", {"one <b>": {"a": 1.0, "b": 3.0}, "two": {"b": 2.0}}, "s")
    widths = [float(each.get("width")) for each in ET.fromstring(svg).iter(f"{SVG}rect")][1:]  # noqa: S314 - made here
    assert math.isclose(widths[0] + widths[1], 2 * widths[2], rel_tol=0.01)
    assert {"one <b>", "4 s", "2 s"} <= set(texts(svg))
    assert svg.count('class="s1"') == 2  # b is of one colour


def test_a_distribution_says_its_median_and_leaves_out_what_has_no_values():
    svg = plot.distributions(
        "t", {"gone": np.empty(0), "slow": np.array([1.0, 2.0, 9.0]), "same": np.full(5, 3.0)}, "ms"
    )
    assert "slow: median 2 ms" in texts(svg)
    assert "gone" not in svg
    assert 'class="s0"' not in svg
    assert "nan" not in plot.distributions("t", {"one": np.full(5, 3.0)}, "ms")
