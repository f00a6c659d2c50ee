"""Curves over a logarithmic number of steps, drawn with Pillow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 560, 360, 60, 70, 50, 30
TEXT, GRID = (60, 60, 60), (225, 225, 225)

Colour: TypeAlias = tuple[int, int, int]


class Line(NamedTuple):
    """A named, coloured sequence of (x, y)."""

    name: str
    colour: Colour
    points: Sequence[tuple[float, float]]


def plot(path: Path, title: str, panels: Sequence[tuple[str, Sequence[Line]]]) -> None:
    """Write a picture: panels side by side on one vertical scale, every name labelled once at its end."""
    size = (LEFT + len(panels) * WIDTH, TOP + HEIGHT + BOTTOM)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    pen.text((LEFT, 16), title, TEXT, ImageFont.load_default(18))
    values = [y for _, lines in panels for line in lines for _, y in line.points]
    low, high = math.floor(min(values) * 5) / 5, math.ceil(max(values) * 5) / 5
    for index, (name, lines) in enumerate(panels):
        left = LEFT + index * WIDTH
        draw_panel(pen, left, name, lines, (low, high))
    picture.save(path, optimize=True)


def draw_panel(
    pen: ImageDraw.ImageDraw, left: int, name: str, lines: Sequence[Line], limits: tuple[float, float]
) -> None:
    low, high = limits
    first, last = lines[0].points[0][0], lines[0].points[-1][0]
    wide = WIDTH - GAP - 90  # the names stand behind the curves

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / first) / math.log(last / first)
        return left + wide * across, TOP + HEIGHT * (high - y) / (high - low)

    font = ImageFont.load_default(13)
    for tick in range(round((high - low) * 5) + 1):
        y = place(first, low + tick / 5)[1]
        pen.line((left, y, left + wide, y), GRID)
        pen.text((left - 8, y), f"{low + tick / 5:.1f}", TEXT, font, anchor="rm")
    for x, _ in lines[0].points[:2] + lines[0].points[4::5]:
        pen.text((place(x, low)[0], TOP + HEIGHT + 8), f"{x:,}", TEXT, font, anchor="mt")
    pen.text((left + wide, TOP + 4), name, TEXT, ImageFont.load_default(15), anchor="rt")
    for line in lines:
        pen.line([place(*point) for point in line.points], line.colour, 2)
    for line in {line.name: line for line in lines}.values():
        pen.text((left + wide + 8, place(*line.points[-1])[1]), line.name, line.colour, font, anchor="lm")
