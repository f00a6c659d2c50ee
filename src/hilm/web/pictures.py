"""Pictures of one tensor: its Hilbert picture with the values behind it, and its histogram.

The colours are those of every contact sheet: 24 of the 256 levels are s, the power of two nearest to sigma.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import hilm
from hilm.html import Markup, tag
from hilm.quantities import figure
from hilm.reel.curve import cells, order_for
from hilm.reel.preview import COLOURS, LEVELS, ZERO, measure
from hilm.store.films import read_drawable
from hilm.web.views import place_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.reel.pictures import Drawable

KEPT = 48
"""Drawn tensors that are remembered, a megabyte each at most."""

BINS, WIDTH, HEIGHT = 61, 610, 180


@lru_cache(KEPT)
def _read(store: Path, name: str, content: bytes, tensor: str) -> Drawable:  # noqa: ARG001 - the content is the key
    opened = hilm.Store(store)
    return read_drawable(opened, place_of(opened, opened.row(name)), tensor)


def read_tensor(store: Path, name: str, tensor: str) -> Drawable:
    """What is drawn of a tensor of a model in the store.

    Raises:
        UnknownModel: No model of that name.
        UsageError: It has no such tensor.
        InputError: Its weights are gone, and there is no reel.
    """
    return _read(store, name, hilm.Store(store).row(name)["content_key"], tensor)


def draw_png(drawable: Drawable, side: int) -> bytes:
    """The Hilbert picture as a PNG of at most ``side`` pixels a side."""
    picture = drawable.draw().picture
    index = np.arange(side) * len(picture) // side
    png = BytesIO()
    Image.fromarray(COLOURS[picture[np.ix_(index, index)]]).save(png, "PNG")
    return png.getvalue()


def lay_values(drawable: Drawable) -> bytes:
    """Values cell by cell, for a browser to look up.

    Returns:
        float32 ``[4**order]`` in raster order, little-endian, then int32: the element's number in the tensor,
        -1 where there is none.
    """
    order = order_for(drawable.values.size)
    places = cells(order)[: drawable.values.size]
    values, elements = np.full(4**order, np.nan, "<f4"), np.full(4**order, -1, "<i4")
    values[places] = drawable.values
    elements[places] = _elements(drawable)
    return values.tobytes() + elements.tobytes()


def _elements(drawable: Drawable) -> NDArray[np.int64]:
    """Numbers of the elements drawn, as ``hilm.reel.preview.Sampler`` takes them."""
    index, kept = np.arange(drawable.values.size), max(1, drawable.values.size)
    whole, rest = divmod(math.prod(drawable.shape) if drawable.sampled else kept, kept)
    return index * whole + index * rest // kept


def draw_legend() -> Markup:
    """The colours from -5 s to +5 s."""
    greys = np.arange(ZERO - 5 * LEVELS, ZERO + 5 * LEVELS + 1)
    png = BytesIO()
    Image.fromarray(COLOURS[np.tile(greys, (14, 1))]).save(png, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    image = tag("img", src=source, alt="Blue is negative, near-white zero, orange positive.")
    ticks = tag("span", "-5 s") + tag("span", "0") + tag("span", "+5 s")
    return tag("div", image, tag("div", Markup(ticks), class_="ticks"), class_="legend")


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values lie in even steps of s / 6 around zero, the outermost being all beyond.

    Attributes:
        counts: int64 ``[61]``.
        sigma: Root mean square of the finite values.
        scale: s.
    """

    counts: NDArray[np.int64]
    sigma: float
    scale: float


def count_values(drawable: Drawable) -> Histogram:
    """Histogram of the values drawn."""
    finite = drawable.values[np.isfinite(drawable.values)].astype(np.float64)
    sigma, scale = measure(drawable.values)
    bins = np.clip(np.rint(finite / scale * 6) + BINS // 2, 0, BINS - 1).astype(int)
    return Histogram(np.bincount(bins, minlength=BINS), sigma, scale)


def draw_histogram(found: Histogram) -> Markup:
    """The histogram as an SVG; bars have the colours of the picture, and say what they count."""
    step, top = WIDTH / BINS, max(1, int(found.counts.max()))
    bars = []
    for k, number in enumerate(found.counts.tolist()):
        middle = (k - BINS // 2) / 6
        red, green, blue = COLOURS[min(255, max(0, round(ZERO + LEVELS * middle)))].tolist()
        height = HEIGHT * number / top
        bars.append(
            tag(
                "rect", tag("title", f"{number:,} values near {figure(middle * found.scale)}"),
                x=f"{k * step:.1f}", y=f"{HEIGHT - height:.1f}", width=f"{step - 1:.1f}",
                height=f"{height:.1f}", fill=f"rgb({red},{green},{blue})", class_="bar",
            )
        )  # fmt: skip
    labels = [
        tag("text", figure(k * found.scale), x=f"{WIDTH * (0.5 + k * 6 / BINS):.0f}", y=str(HEIGHT + 18))
        for k in range(-4, 5, 2)
    ]
    alt = f"Histogram of the values; sigma {figure(found.sigma)}"
    size = f"0 0 {WIDTH} {HEIGHT + 26}"
    return tag("svg", *bars, *labels, viewBox=size, role="img", aria_label=alt, class_="histogram")
