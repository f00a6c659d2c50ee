"""A heat map of a model: a row for every block, a column for every kind of tensor, a colour for one figure.

Colours mean the same in every picture, so that two models can be laid side by side. What lies beyond the ends
of a scale has the colour of that end.

=========  ==================================================  =======================  ===========
figure     of the values of all tensors in a cell              scale                    from, to
=========  ==================================================  =======================  ===========
std        population standard deviation                       logarithmic              2^-10, 1
max        largest magnitude                                   logarithmic              2^-6, 2^6
outliers   share beyond 6 standard deviations of their tensor  logarithmic              10^-6, 10^-2
zeros      share of exact zeros                                linear                   0, 1
mean       arithmetic mean                                     ± log(1 + 2^10 |mean|)   -1, 1
=========  ==================================================  =======================  ===========
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hilm.errors import UsageError
from hilm.reel.preview import COLOURS, FAINT, MARGIN, TEXT, ZERO
from hilm.weights.roles import KINDS, LAYER_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from hilm.weights.roles import Role
    from hilm.weights.statistics import Figures, LayerStatistics

WIDTH, TALLEST, LOWEST = 56, 22, 5  # of a cell, in pixels
HEIGHT = 1600  # of all rows, where their cells need not be lower than LOWEST
MAX_ROWS = 2000
HEADER, COLUMN_LABELS, ROW_LABELS = 104, 40, 132
NARROWEST, TITLE = 640, 28  # pixels of the picture, characters of the title
LETTERS = 12  # pixels that a line of the smallest text takes
PAPER, HATCH = (247, 247, 245), (222, 222, 218)

# Six colours at even steps of CIE lightness, 14 to 87, from violet over blue and green to yellow: dark is
# little and light is much for colour-blind eyes too, and in grey.
_STOPS = np.array(
    [(51, 15, 88), (54, 62, 122), (31, 109, 142), (40, 154, 138), (117, 195, 101), (236, 221, 77)]
)
_EMBEDDING, _OTHER, _OUTPUT = "embedding", "other", "output"
_GROUPS = {"embedding": "embed", "normalization": "norm"}  # what a single column has room for


def _blend(stops: NDArray[np.int64]) -> NDArray[np.uint8]:
    """256 colours evenly between the stops."""
    places = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(places, range(len(stops)), part) for part in stops.T], 1).round().astype("u1")


SEQUENTIAL = _blend(_STOPS)
DIVERGING = COLOURS[np.linspace(1, 2 * ZERO - 1, 256).round().astype(int)]


@dataclass(frozen=True, slots=True)
class Scale:
    """How a figure becomes a colour.

    Attributes:
        title: What the legend calls it.
        value: Takes the figure from what was measured, of at least one finite value.
        place: Figure → 0 (first colour) to 1 (last); beyond is clamped.
        ticks: Labels of the legend, by figure.
        colours: uint8 ``[256, 3]``.
    """

    title: str
    value: Callable[[Figures], float]
    place: Callable[[float], float]
    ticks: dict[float, str]
    colours: NDArray[np.uint8]

    def colour(self, figures: Figures) -> tuple[int, int, int]:
        """Colour of a cell."""
        place = min(max(self.place(self.value(figures)), 0.0), 1.0)
        red, green, blue = self.colours[round(255 * place)].tolist()
        return red, green, blue


def _logarithmic(low: float, high: float) -> Callable[[float], float]:
    return lambda x: math.log(x / low) / math.log(high / low) if x > 0 else 0.0


def _signed(x: float) -> float:
    return 0.5 + math.copysign(math.log1p(abs(x) * 1024) / math.log1p(1024) / 2, x)


FIGURES = {
    "std": Scale(
        "standard deviation",
        lambda f: f.std,
        _logarithmic(2**-10, 1),
        {2**-10: "2^-10", 2**-5: "2^-5", 1: "1"},
        SEQUENTIAL,
    ),
    "max": Scale(
        "largest magnitude",
        lambda f: max(abs(f.low), abs(f.high)),
        _logarithmic(2**-6, 2**6),
        {2**-6: "2^-6", 1: "1", 2**6: "64"},
        SEQUENTIAL,
    ),
    "outliers": Scale(
        "share of outliers (beyond 6 sigma)",
        lambda f: f.outliers / f.count,
        _logarithmic(1e-6, 1e-2),
        {1e-6: "1e-6", 1e-4: "1e-4", 1e-2: "1 %"},
        SEQUENTIAL,
    ),
    "zeros": Scale(
        "share of zeros",
        lambda f: f.zeros / f.count,
        lambda x: x,
        {0: "0", 0.5: "50 %", 1: "100 %"},
        SEQUENTIAL,
    ),
    "mean": Scale(
        "mean", lambda f: f.mean, _signed, {-1: "-1", -0.03: "-0.03", 0: "0", 0.03: "0.03", 1: "1"}, DIVERGING
    ),
}
"""Figures that can be drawn, by name."""


class Row(NamedTuple):
    """A block of a stack, or what lies outside of blocks (``block`` None, ``stack`` its label)."""

    stack: str
    block: int | None


class Column(NamedTuple):
    """A kind of tensors within a layer type."""

    type: str
    kind: str


def draw_heatmap(statistics: LayerStatistics, *, model: str, figure: str = "std") -> bytes:
    """Draw one figure of a whole model as PNG.

    Args:
        statistics: What was measured.
        model: The title.
        figure: A name of ``FIGURES``.

    Raises:
        UsageError: There is no such figure, nothing was measured, or there are more than 2000 blocks.
    """
    if figure not in FIGURES:
        raise UsageError(f"there is no figure {figure!r}", hint=f"figures: {', '.join(FIGURES)}")
    scale = FIGURES[figure]
    cells = statistics.fold(lambda name, role: (_row(name, role), Column(role.type, role.kind)))
    cells = {place: figures for place, figures in cells.items() if figures.count}
    if not cells:
        raise UsageError(f"{model} has no finite weights to draw")
    rows, columns = _order_rows(row for row, _ in cells), _order_columns({column for _, column in cells})
    if len(rows) > MAX_ROWS:
        raise UsageError(f"{model} has {len(rows):,} blocks; a heat map takes {MAX_ROWS:,}")
    tops = _stack_rows(rows)
    width = max(2 * MARGIN + ROW_LABELS + WIDTH * len(columns), NARROWEST)
    image = Image.new("RGB", (width, tops[-1] + MARGIN), "white")
    pen = ImageDraw.Draw(image)
    parameters = sum(figures.parameters for figures in cells.values())
    pen.text((MARGIN, 20), model[-TITLE:], TEXT, ImageFont.load_default(22))
    pen.text((MARGIN, 52), f"{parameters:,} parameters", FAINT, ImageFont.load_default(13))
    _draw_legend(image, pen, scale)
    _label_columns(pen, columns)
    _label_rows(pen, rows, tops)
    for row, (top, bottom) in zip(rows, pairwise(tops), strict=True):
        for x, column in enumerate(columns):
            left, gap = MARGIN + ROW_LABELS + x * WIDTH, 1 + (bottom - top >= LETTERS)
            box = (left, top, left + WIDTH - 2, bottom - gap)
            _draw_cell(pen, box, scale, cells.get((row, column)))
    png = BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def _row(name: str, role: Role) -> Row:
    if role.block is not None:
        return Row(re.split(r"(?:^|[./])\d+(?:[./]|$)", name, maxsplit=1)[0], role.block)
    return Row(role.type if role.type in {_EMBEDDING, _OUTPUT} else _OTHER, None)


def _order_rows(rows: Iterable[Row]) -> list[Row]:
    """Embedding, then the blocks of each stack in the order of the checkpoint, then other and output."""
    found = dict.fromkeys(rows)
    stacks = list(dict.fromkeys(row.stack for row in found if row.block is not None))
    outside = [Row(label, None) for label in (_EMBEDDING, _OTHER, _OUTPUT)]
    blocks = sorted(
        (row for row in found if row.block is not None), key=lambda row: (stacks.index(row.stack), row.block)
    )
    return [row for row in (outside[0], *blocks, *outside[1:]) if row in found]


def _stack_rows(rows: Sequence[Row]) -> list[int]:
    """Where each row begins, and where the last one ends; blocks are lower where there are many."""
    height = min(max(HEIGHT // len(rows), LOWEST), TALLEST)
    heights = (TALLEST if row.block is None else height for row in rows)
    return list(accumulate(heights, initial=HEADER + COLUMN_LABELS))


def _order_columns(columns: set[Column]) -> list[Column]:
    return sorted(columns, key=lambda column: (LAYER_TYPES.index(column.type), KINDS.index(column.kind)))


def _name_stacks(stacks: Sequence[str]) -> dict[str, str]:
    """What tells stacks apart: their paths without what they begin and end with alike."""
    paths = {stack: stack.replace("/", ".").split(".") for stack in stacks}
    if len(paths) < 2:
        return dict.fromkeys(paths, "block")
    for side in (0, -1):
        while all(len(path) > 1 for path in paths.values()) and len({p[side] for p in paths.values()}) == 1:
            for path in paths.values():
                del path[side]
    return {stack: ".".join(path)[-16:] for stack, path in paths.items()}


def _label_columns(pen: ImageDraw.ImageDraw, columns: Sequence[Column]) -> None:
    font, bottom = ImageFont.load_default(11), HEADER + COLUMN_LABELS
    for x, column in enumerate(columns):
        left = MARGIN + ROW_LABELS + x * WIDTH
        if x == 0 or columns[x - 1].type != column.type:
            pen.text((left, bottom - 36), _GROUPS.get(column.type, column.type), FAINT, font)
            pen.line([(left, bottom - 21), (left, bottom - 4)], FAINT)
        pen.text((left + WIDTH // 2 - 1, bottom - 20), column.kind, TEXT, font, "ma")


def _label_rows(pen: ImageDraw.ImageDraw, rows: Sequence[Row], tops: Sequence[int]) -> None:
    """Label every row, or every so many blocks where the labels would not fit."""
    font = ImageFont.load_default(11)
    names = _name_stacks(list(dict.fromkeys(row.stack for row in rows if row.block is not None)))
    for row, (top, bottom) in zip(rows, pairwise(tops), strict=True):
        label = row.stack if row.block is None else f"{names[row.stack]} {row.block}"
        if row.block is None or row.block % -(-LETTERS // (bottom - top)) == 0:
            pen.text((MARGIN + ROW_LABELS - 8, (top + bottom) // 2 - 1), label, TEXT, font, "rm")


def _draw_cell(
    pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], scale: Scale, figures: Figures | None
) -> None:
    left, top, right, bottom = box
    if figures is None:
        pen.rectangle(box, PAPER)
        pen.line([(left, bottom), (right, top)], HATCH)
        return
    colour = scale.colour(figures)
    pen.rectangle(box, colour)
    if bottom - top >= LETTERS:
        red, green, blue = colour
        ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else TEXT  # luma of Rec. 601
        middle = ((left + right + 1) // 2, (top + bottom + 1) // 2)
        pen.text(middle, f"{scale.value(figures):.2g}", ink, ImageFont.load_default(10), "mm")


def _draw_legend(image: Image.Image, pen: ImageDraw.ImageDraw, scale: Scale) -> None:
    """Draw the colours of the scale, right-aligned in the header."""
    font = ImageFont.load_default(11)
    left, top = image.width - MARGIN - 256 - 12, 20
    image.paste(Image.fromarray(np.tile(scale.colours, (14, 1, 1))), (left, top))
    for tick, label in scale.ticks.items():
        x = left + round(255 * scale.place(tick))
        pen.line([(x, top + 14), (x, top + 17)], FAINT)
        pen.text((x, top + 19), label, TEXT, font, "ma")
    pen.text((left + 128, top + 36), scale.title, FAINT, font, "ma")
