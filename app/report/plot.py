"""Plots as SVG text: lines over numbers, nothing loaded from anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 420, 64, 48, 40, 16
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df")
TICKS = 6

Points = Sequence[tuple[float, float]]


def line_plot(title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> str:
    """An SVG document with one line for each name, both axes from zero; every point tells its values when pointed at.

    Raises:
        ValueError: there is no point.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError("nothing to plot")
    x_end, y_end = (_round_up(max(point[axis] for point in points)) for axis in (0, 1))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point[0] / x_end, point[1] / y_end
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - TOP)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        ),
        _text(LEFT, 18, title, size=14),
        _text((LEFT + WIDTH) / 2, HEIGHT - 10, x_label, anchor="middle"),
        f'<g transform="translate(14 {HEIGHT / 2}) rotate(-90)">{_text(0, 0, y_label, anchor="middle")}</g>',
    ]
    for number in range(TICKS + 1):
        x_value, y_value = x_end * number / TICKS, y_end * number / TICKS
        x, y = place((x_value, y_value))
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#d0d7de"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 16, f"{x_value:.4g}", anchor="middle"))
        parts.append(_text(LEFT - 6, y + 4, f"{y_value:.4g}", anchor="end"))
    for (name, line), colour in zip(lines.items(), COLOURS * len(lines), strict=False):
        places = [place(point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}">'
            f"<title>{html.escape(name)}: {point[0]:.4g}, {point[1]:.4g}</title></circle>"
            for (x, y), point in zip(places, line, strict=True)
        ]
    for number, (name, colour) in enumerate(zip(lines, COLOURS * len(lines), strict=False)):
        parts.append(_text(LEFT + 12, TOP + 14 + 16 * number, name, colour=colour))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#1f2328") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{html.escape(text)}</text>'


def _round_up(value: float) -> float:
    """The next number that reads well: 1, 1.5, 2, 3, 5 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 1.5, 2, 3, 5, 8, 10) if step * power >= value * (1 - 1e-9)))
