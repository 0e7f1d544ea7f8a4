"""Line plots as SVG: panels under one another over a common axis, without a library for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 230
"""Of a panel."""
LEFT: Final = 60
RIGHT: Final = 20
TOP: Final = 30
BOTTOM: Final = 35
STYLES: Final = (
    'stroke="#0a6"',
    'stroke="#c30" stroke-dasharray="6 4"',
    'stroke="#07c"',
    'stroke="#c70" stroke-dasharray="2 3"',
)


@dataclass(frozen=True)
class Line:
    """One line; ``title`` is written beside its colour."""

    title: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Some lines with a common vertical axis, which begins at 0. ``logarithmic``: values below 1 are drawn at its foot."""

    title: str
    lines: Sequence[Line]
    logarithmic: bool = False


@dataclass(frozen=True)
class Axis:
    """The horizontal one. ``logarithmic``: for values above 0."""

    title: str
    marks: Sequence[float]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value is, in pixels."""
        first, last, at = (
            math.log(each) if self.logarithmic else each for each in (self.marks[0], self.marks[-1], value)
        )
        return LEFT + (at - first) / (last - first) * (WIDTH - LEFT - RIGHT)


def draw(path: Path, axis: Axis, panels: Sequence[Panel]) -> None:
    """Write the plot; the axis ends at its first and last mark."""
    height = HEIGHT * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate(0 {number * HEIGHT})">', *_panel(panel, axis), "</g>"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>\n"]))


def _panel(panel: Panel, axis: Axis) -> list[str]:
    most = max([1.0, *(value for line in panel.lines for _, value in line.points)])
    marks = _decades(most) if panel.logarithmic else _steps(most)
    foot, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def level(value: float) -> float:
        if panel.logarithmic:
            return foot - math.log10(max(1.0, value)) / math.log10(marks[-1]) * height
        return foot - value / marks[-1] * height

    parts = [f'<text x="{LEFT}" y="16">{panel.title}</text>']
    for mark in marks:
        parts.append(f'<path d="M{LEFT} {level(mark):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{level(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>')
    for mark in axis.marks:
        x = axis.place(mark)
        parts.append(f'<path d="M{x:.1f} {TOP}V{foot}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{foot + 15}" text-anchor="middle">{mark:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{foot + 30}" text-anchor="end">{axis.title}</text>')
    for number, line in enumerate(panel.lines):
        style, x, y = STYLES[number % len(STYLES)], LEFT + 160 * number, foot + 26
        points = " ".join(f"{axis.place(at):.1f},{level(value):.1f}" for at, value in line.points)
        parts.append(f'<polyline fill="none" stroke-width="2" {style} points="{points}"/>')
        parts.append(
            f'<path d="M{x} {y}h20" stroke-width="2" {style}/><text x="{x + 26}" y="{y + 4}">{line.title}</text>'
        )
    return parts


def _decades(most: float) -> list[float]:
    """1, 10, 100 ... up to the first that is not less."""
    return [10.0**power for power in range(max(1, math.ceil(math.log10(most))) + 1)]


def _steps(most: float) -> list[float]:
    """From 0 up in some five round steps to the first that is not less."""
    unit = 10.0 ** math.floor(math.log10(most / 5))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * 5 >= most)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]
