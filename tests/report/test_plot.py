"""Plots: whatever the values are, every point is inside and the axes are marked in steps that read well."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.report.plot import HEIGHT, WIDTH, line_plot

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.floats(1e-6, 1e9)


def drawn(lines):
    return ET.fromstring(line_plot("a < b", "batch size", "ms", lines))  # noqa: S314 - our own text


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20))
def test_every_point_is_drawn_within_the_picture(points):
    found = drawn({"measured": points}).findall(f"{SVG}circle")
    assert len(found) == len(points)
    assert all(0 <= float(item.get("cx")) <= WIDTH and 0 <= float(item.get("cy")) <= HEIGHT for item in found)


@pytest.mark.parametrize(
    ("largest", "marks"), [(32, [0, 5, 10, 15, 20, 25, 30, 35]), (0.09, [0, 0.02, 0.04, 0.06, 0.08, 0.1])]
)
def test_axes_are_marked_in_steps_that_read_well(largest, marks):
    texts = [item.text for item in drawn({"": [(largest, 1.0)]}).findall(f"{SVG}text") if item.get("y") == "388.0"]
    assert [float(text) for text in texts if re.fullmatch(r"[\d.]+", text)] == marks


def test_nothing_to_plot_is_an_error():
    with pytest.raises(ValueError, match="nothing to plot"):
        line_plot("", "", "", {"empty": []})
