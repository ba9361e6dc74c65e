"""Plots as SVG text, nothing loaded from anywhere.

Colours are attributes, so that a file of its own is readable, and a page's style sheet overrides them by class:
`s0` to `s7` for the series, `grid`, and `paper`; all else takes the text's colour.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 420, 76, 48, 40, 16
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#9a6700", "#007a8a", "#b0124f", "#57606a")
TICKS = 6
ROW = 38  # the height of a bar or a distribution with its label above
NUM_BINS = 60

Points = Sequence[tuple[float, float]]


def line_plot(
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Points],
    *,
    log: bool | tuple[bool, bool] = False,
    dots: bool = False,
    bare: bool = False,
) -> str:
    """An SVG document with one line for each name; every point tells its values when pointed at.

    Args:
        title: What it shows; a page's reader hears it.
        x_label: The horizontal axis.
        y_label: The vertical one.
        lines: The points of each line, none to leave it out and keep the colours of the others; a logarithmic axis
            has no place for what isn't above zero.
        log: Whether the axes are logarithmic, not from zero: both, or (x, y).
        dots: Points that no line joins.
        bare: For a page with its own title and legend: each line ends in its number, counted from 1.

    Raises:
        ValueError: there is no point.
    """
    logs = log if isinstance(log, tuple) else (log, log)
    lines = {
        name: [
            point for point in line if all(value > 0 or not is_log for value, is_log in zip(point, logs, strict=True))
        ]
        for name, line in lines.items()
    }
    x_axis, y_axis = (
        _axis([point[index] for line in lines.values() for point in line], is_log=logs[index]) for index in (0, 1)
    )
    width, height, top = (560, 340, 12) if bare else (WIDTH, HEIGHT, TOP)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = x_axis.place(point[0]), y_axis.place(point[1])
        return LEFT + x * (width - LEFT - RIGHT), height - BOTTOM - y * (height - BOTTOM - top)

    parts = [
        *([] if bare else [_text(LEFT, 18, title, size=14)]),
        _text((LEFT + width) / 2, height - 10, x_label, anchor="middle"),
        f'<g transform="translate(12 {height / 2}) rotate(-90)">{_text(0, 0, y_label, anchor="middle")}</g>',
    ]
    for value in x_axis.ticks():
        x, _ = place((value, y_axis.start))
        parts.append(_text(x, height - BOTTOM + 16, f"{value:.4g}", anchor="middle"))
    for value in y_axis.ticks():
        _, y = place((x_axis.start, value))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}" stroke="#d0d7de"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:.4g}", anchor="end"))
    for number, (name, line) in enumerate(lines.items()):
        if not line:
            continue
        places = [place(point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        circles = [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if dots else 2.5}" fill="currentColor">'
            f"<title>{html.escape(name)}: {point[0]:.4g}, {point[1]:.4g}</title></circle>"
            for (x, y), point in zip(places, line, strict=True)
        ]
        shape = "" if dots else f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        legend = "" if bare else _text(LEFT + 12, top + 14 + 16 * number, name)
        if bare:
            legend = _text(places[-1][0] + (7 if dots else 4), places[-1][1] - 4, str(number + 1))
        parts.append(_series(number, shape, *circles, legend))
    return _document(title, width, height, parts)


def bars(title: str, rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """An SVG document with a bar for each row, made of its parts, and the row's sum beside it."""
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    width, longest = 560, max((sum(parts.values()) for parts in rows.values()), default=0) or 1.0
    drawn = []
    for number, (label, parts) in enumerate(rows.items()):
        x, y = 0.0, number * ROW
        pieces = []
        for name, value in parts.items():
            size = value / longest * (width - 90)
            pieces.append(
                _series(
                    names.index(name),
                    f'<rect x="{x:.1f}" y="{y + 18}" width="{size:.1f}" height="14" fill="currentColor">'
                    f"<title>{html.escape(name)}: {value:.3g} {unit}</title></rect>",
                )
            )
            x += size
        drawn += [_text(0, y + 13, label), *pieces, _text(x + 6, y + 29, f"{sum(parts.values()):.3g} {unit}")]
    return _document(title, width, ROW * len(rows), drawn)


def distributions(title: str, rows: Mapping[str, NDArray[np.float64]], unit: str) -> str:
    """An SVG document with a histogram for each row on one axis, up to the slowest row's p99, its median marked.

    A row without values is left out, and the others keep their colours.
    """
    shown = {number: (label, values) for number, (label, values) in enumerate(rows.items()) if values.size}
    low = min(float(values.min()) for _, values in shown.values())
    high = max(float(np.percentile(values, 99)) for _, values in shown.values())
    high = high if high > low else low + 1.0
    width, parts = 560, []
    for place, (number, (label, values)) in enumerate(shown.items()):
        counts, _ = np.histogram(values, bins=NUM_BINS, range=(low, high))
        base, step, tallest = (place + 1) * ROW - 2, width / NUM_BINS, max(counts.max(), 1)
        tops = [f"{i * step:.1f},{base - 18 * count / tallest:.1f}" for i, count in enumerate(counts)]
        outline = " ".join(f"{top} {(i + 1) * step:.1f},{top.partition(',')[2]}" for i, top in enumerate(tops))
        median = float(np.median(values))
        x = min(max((median - low) / (high - low), 0.0), 1.0) * width
        parts += [
            _series(
                number,
                f'<polygon points="0,{base} {outline} {width},{base}" fill="currentColor" fill-opacity="0.45"/>'
                f'<path d="M{x:.1f} {base}v-20" stroke="currentColor" stroke-width="2"/>',
            ),
            _text(0, place * ROW + 13, f"{label}: median {median:.3g} {unit}"),
        ]
    height = ROW * len(shown) + 18
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(_text(share * width, height - 3, f"{low + share * (high - low):.3g} {unit}", anchor=anchor))
    return _document(title, width, height, parts)


@dataclass(frozen=True)
class _Axis:
    start: float
    end: float
    is_log: bool

    def place(self, value: float) -> float:
        """From 0 to 1."""
        if self.is_log:
            return math.log(value / self.start) / math.log(self.end / self.start)
        return (value - self.start) / (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.is_log:
            rough = (self.end - self.start) / TICKS
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough * (1 - 1e-9))
            first, last = math.ceil(self.start / step - 1e-9), math.floor(self.end / step + 1e-9)
            return [step * number for number in range(first, last + 1)]
        powers = range(math.floor(math.log10(self.start)), math.ceil(math.log10(self.end)) + 1)
        for steps in ((1, 2, 5), (1,)):
            found = [step * 10.0**power for power in powers for step in steps]
            found = [value for value in found if self.start * 0.999 <= value <= self.end * 1.001]
            if len(found) <= TICKS + 3:
                break
        return found


def _axis(values: Sequence[float], *, is_log: bool) -> _Axis:
    if not values:
        raise ValueError("nothing to plot")
    low, high = min(values), max(values)
    if not is_log:
        return _Axis(-_round_up(-low) if low < 0 else 0.0, _round_up(high), is_log=False)
    start = 1 / _round_up(1 / low)
    return _Axis(start, max(_round_up(high), start * 10), is_log=True)


def _document(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(title)}" font-family="sans-serif" font-size="12" color="#1f2328">'
        f'<rect class="paper" width="{width}" height="{height}" fill="white"/>'
    )
    return "\n".join([opening, *parts, "</svg>\n"])


def _series(number: int, *parts: str) -> str:
    number %= len(COLOURS)
    return f'<g class="s{number}" color="{COLOURS[number]}">{"".join(parts)}</g>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="currentColor">{html.escape(text)}</text>'


def _round_up(value: float) -> float:
    """The next number that reads well: 1, 1.5, 2, 3, 5 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 1.5, 2, 3, 5, 8, 10) if step * power >= value * (1 - 1e-9)))
