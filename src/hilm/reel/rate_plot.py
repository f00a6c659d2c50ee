"""A rate-distortion plot: bits per weight across, error upwards on a log scale, and the Gaussian bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from hilm.reel.preview import FAINT, TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 960, 640
LEFT, TOP, RIGHT, BOTTOM = 84, 92, 932, 572  # of the axes, in pixels
GRID = (230, 230, 226)
OWN, SINGLE, OTHER = (31, 109, 142), (150, 190, 208), (192, 84, 40)


@dataclass(frozen=True, slots=True)
class Point:
    """Something that costs ``bits`` per weight and loses ``nmse``, which is above 0.

    Attributes:
        label: Drawn beside the point, if there is one.
        own: Whether a reel's; else another codec's.
    """

    bits: float
    nmse: float
    label: str
    own: bool


@dataclass(frozen=True, slots=True)
class _Axes:
    """Bits 0 … ``most`` across; error upwards, powers of 10 from ``low`` to ``high``."""

    most: int
    low: int
    high: int

    def place(self, bits: float, nmse: float) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * bits / self.most
        y = TOP + (BOTTOM - TOP) * (self.high - math.log10(nmse)) / (self.high - self.low)
        return x, y


def draw_rates(points: Sequence[Point], *, title: str) -> bytes:
    """Draw points and the bound NMSE = 4^-bits as PNG.

    Args:
        points: At least one.
        title: Of the plot.
    """
    axes = _Axes(
        math.floor(max(point.bits for point in points)) + 1,
        math.floor(math.log10(min(point.nmse for point in points)) - 0.2),
        min(math.ceil(math.log10(max(point.nmse for point in points)) + 0.2), 0),
    )
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    pen.text((LEFT, 20), title[:64], TEXT, ImageFont.load_default(22))
    pen.text((LEFT, 54), "same tensors; lower and further left is better", FAINT, ImageFont.load_default(13))
    _draw_axes(pen, axes)
    _draw_bound(pen, axes)
    for point in sorted(points, key=lambda p: (bool(p.label), p.own)):
        _draw_point(pen, axes, point)
    _draw_legend(pen)
    png = BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def _draw_axes(pen: ImageDraw.ImageDraw, axes: _Axes) -> None:
    font = ImageFont.load_default(13)
    for bits in range(axes.most + 1):
        x, _ = axes.place(bits, 1)
        pen.line([(x, TOP), (x, BOTTOM)], GRID)
        pen.text((x, BOTTOM + 8), str(bits), TEXT, font, "ma")
    for power in range(axes.low, axes.high + 1):
        _, y = axes.place(0, 10.0**power)
        pen.line([(LEFT, y), (RIGHT, y)], GRID)
        pen.text((LEFT - 10, y), "1" if power == 0 else f"1e{power}", TEXT, font, "rm")
    pen.line([(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], FAINT)
    pen.text(((LEFT + RIGHT) / 2, BOTTOM + 32), "bits per weight", TEXT, font, "ma")
    pen.text((LEFT - 10, TOP - 22), "NMSE", TEXT, font, "rm")


def _draw_bound(pen: ImageDraw.ImageDraw, axes: _Axes) -> None:
    """Draw NMSE = 4^-bits from one edge of the axes to another; it is straight."""
    octaves = math.log2(10) / 2
    ends = [min(max(-power * octaves, 0), axes.most) for power in (axes.high, axes.low)]
    pen.line([axes.place(bits, 4.0**-bits) for bits in ends], TEXT, 2)


def _draw_point(pen: ImageDraw.ImageDraw, axes: _Axes, point: Point) -> None:
    x, y = axes.place(point.bits, point.nmse)
    radius, colour = (5, OWN if point.own else OTHER) if point.label else (2, SINGLE)
    if point.own:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        pen.text((x - 9, y + 4), point.label, colour, ImageFont.load_default(14), "ra")
    else:
        pen.rectangle((x - 4, y - 4, x + 4, y + 4), colour)
        pen.text((x + 9, y - 4), point.label, colour, ImageFont.load_default(14), "ls")


def _draw_legend(pen: ImageDraw.ImageDraw) -> None:
    font, left = ImageFont.load_default(13), RIGHT - 320
    texts = (
        (TEXT, "bound of a Gaussian, log2(1 / NMSE) / 2"),
        (OWN, "a reel, all rounded tensors"),
        (SINGLE, "one tensor of a reel"),
        (OTHER, "another format, the same tensors"),
    )
    pen.rectangle((left - 12, TOP + 8, RIGHT - 8, TOP + 16 + 22 * len(texts)), "white", GRID)
    for row, (colour, text) in enumerate(texts):
        y = TOP + 23 + 22 * row
        if row == 0:
            pen.line([(left, y), (left + 16, y)], colour, 2)
        else:
            radius = 2 if colour == SINGLE else 4
            shape = pen.rectangle if colour == OTHER else pen.ellipse
            shape((left + 8 - radius, y - radius, left + 8 + radius, y + radius), colour)
        pen.text((left + 28, y), text, TEXT, font, "lm")
