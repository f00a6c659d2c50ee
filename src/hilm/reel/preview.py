"""Pictures of tensors for people: grey preview frames and a coloured contact sheet.

One fixed scale serves every picture: with s = the power of two nearest to sigma on a log axis, a weight w is
drawn as 128 + 24 w / s, rounded to even and clamped to 0…255. So 128 is zero and 24 grey levels are one s;
successive checkpoints keep one brightness, and a model and 100 times the model differ in s. sigma is
sqrt(mean w²) over the finite values drawn. NaN and infinities are 255, cells without a value 128.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hilm.errors import UsageError
from hilm.reel.curve import MAX_ORDER, cells, order_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

SIDE = 512  # of a tensor's picture, in pixels
SAMPLE_SIDES = tuple(1 << order for order in range(1, MAX_ORDER + 1))
ZERO, LEVELS = 128, 24  # the grey of zero, and grey levels per s
PAPER, INK = 16, 235  # greys of the caption
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
GLYPH_ROWS, GLYPH_COLUMNS, LINE_ROWS = 7, 5, 10

# The caption font, ASCII 32 to 126 and sigma: seven base-32 digits per glyph, one per row, high bit leftmost.
_FONT_DIGITS = """
0000000 4444404 aaa0000 aavavaa 4fke5u4 pp248jj cik8lid 4400000 2488842 8422248 04lel40 044v440
0000c48 000e000 00000cc 01248g0 ehjlphe 4c4444e eh1248v v2421he 26aiv22 vgu11he 68guhhe v124888
ehhehhe ehhf12c 0cc0cc0 0cc0c48 1248421 00v0v00 8421248 eh12404 ehnlnge ehhvhhh uhhuhhu ehggghe
sihhhis vgguggv vgguggg ehgnhhf hhhvhhh e44444e 72222ic hikokih ggggggv hrllhhh hhpljhh ehhhhhe
uhhuggg ehhhlid uhhukih fgge11u v444444 hhhhhhe hhhhha4 hhhllla hha4ahh hha4444 v1248gv e88888e
0g84210 e22222e 4ah0000 000000v 8400000 00e1fhf ggmphhu 00egghe 11djhhf 00ehvge 698s888 00fhf1e
ggmphhh 40c444e 20622ic ggikoki c44444e 00qllll 00mphhh 00ehhhe 00uhugg 00djf11 00mpggg 00ege1u
88s8896 00hhhjd 00hhha4 00hhlla 00ha4ah 00hhf1e 00v248v 2448442 4444444 8442448 008l200 00fiiic
"""
_FONT_ROWS = np.array([int(digit, 32) for digit in "".join(_FONT_DIGITS.split())], np.uint8)
_FONT = np.unpackbits(_FONT_ROWS[:, None], axis=1)[:, -GLYPH_COLUMNS:].reshape(-1, GLYPH_ROWS, GLYPH_COLUMNS)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One preview frame.

    Attributes:
        pixels: uint8 ``[rows, width]``: a square picture above its caption strip; both sides are even.
        scale: s, in weight units, a power of two.
        sigma: Root mean square of the finite values drawn, in weight units.
    """

    pixels: NDArray[np.uint8]
    scale: float
    sigma: float

    @property
    def picture(self) -> NDArray[np.uint8]:
        """The square without the caption, uint8 ``[width, width]``."""
        return self.pixels[: self.pixels.shape[1]]


class Sampler:
    """Collects what :func:`draw_tensor` draws while a tensor streams past in blocks.

    A tensor of at most 512² elements is kept whole; of a larger one, elements floor(i n / 512²).

    Attributes:
        values: float32 ``[min(numel, 512²)]``, complete once every block was added.
        sampled: Whether some elements are left out.
    """

    def __init__(self, numel: int) -> None:
        kept = min(numel, SIDE * SIDE)
        whole, rest = divmod(numel, max(kept, 1))
        index = np.arange(kept)
        self._positions = index * whole + index * rest // max(kept, 1)  # i n / kept without overflow
        self.values = np.zeros(kept, np.float32)
        self.sampled = kept < numel

    def add(self, start: int, values: NDArray[np.float32]) -> None:
        """Take what is wanted of the block of elements ``start …`` (flat, float32)."""
        first, last = np.searchsorted(self._positions, [start, start + len(values)])
        self.values[first:last] = values[self._positions[first:last] - start]


def draw_tensor(
    values: NDArray[np.float32], *, name: str, dtype: str, shape: tuple[int, ...], sampled: bool
) -> Frame:
    """Draw one tensor: a 512 x 512 Hilbert picture above a 64-row caption.

    Values lie along the curve of the smallest order that holds them, each an equal square of pixels.

    Args:
        values: float32, at most 512² of them, as :class:`Sampler` collects.
        name: Tensor name; characters the caption font lacks are drawn as ``?``.
        dtype: Stored dtype, as in the checkpoint.
        shape: Stored shape.
        sampled: Whether ``values`` are only part of the tensor; the caption then says so.

    Raises:
        UsageError: There are more than 512² values.
    """
    extent = "x".join(map(str, shape)) or "scalar"
    return _draw(values, order_for(values.size), SIDE, (name,), f"{dtype} {extent}{'  sampled' * sampled}")


def draw_state(values: NDArray[np.float32], *, title: str, name: str, facts: str, scale: float) -> Frame:
    """Draw one state of a tensor as :func:`draw_tensor` does, at a scale it shares with the other states.

    Args:
        values: float32, at most 512² of them.
        title: First line of the caption.
        name: Second line.
        facts: Begin of the third, which ends with sigma.
        scale: s, in weight units.

    Raises:
        UsageError: There are more than 512² values.
    """
    return _draw(values, order_for(values.size), SIDE, (title, name), facts, scale)


def draw_sample(values: NDArray[np.float32], *, name: str, side: int | None = None) -> Frame:
    """Draw values one pixel each: a ``side`` x ``side`` Hilbert picture above a caption of ``side`` / 8 rows.

    Args:
        values: float32, at most ``side``² of them.
        name: First line of the caption. Pictures below 64 pixels have no caption.
        side: A power of two from 2 to 2048; by default the smallest that holds the values.

    Raises:
        UsageError: The side is no such number, or the values do not fit.
    """
    if side is None:
        side = 1 << max(1, order_for(values.size))
    if side not in SAMPLE_SIDES:
        raise UsageError(f"{values.size} values in a frame of side {side}", hint="sides are 2, 4, … 2048")
    return _draw(values, side.bit_length() - 1, side, (name,), f"{values.size} values")


def _draw(
    values: NDArray[np.float32],
    order: int,
    side: int,
    names: tuple[str, ...],
    facts: str,
    scale: float | None = None,
) -> Frame:
    if values.size > side * side:
        raise UsageError(f"{values.size} values for a picture of {side} x {side}", hint="sample them first")
    sigma, own = measure(values)
    scale = own if scale is None else scale
    drawn = np.full(4**order, ZERO, np.uint8)
    drawn[cells(order)[: values.size]] = _greys(values, scale)
    strip = side // 8 if side >= 8 * (GLYPH_ROWS + 1) else 0
    pixels = np.full((side + strip, side), PAPER, np.uint8)
    cell = side >> order
    grid = pixels[:side].reshape(1 << order, cell, 1 << order, cell)
    grid[...] = drawn.reshape(1 << order, 1, 1 << order, 1)
    _write_caption(pixels[side:], names, f"{facts}  {SIGMA} {sigma:.3g}")
    return Frame(pixels, scale, sigma)


def measure(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return sigma and s; s is exactly 2^k times larger for values 2^k times larger, as a tie goes up."""
    finite = values[np.isfinite(values)].astype(np.float64)
    power = float(np.square(finite).mean()) if finite.size else 0.0
    scale = math.ldexp(1.0, math.frexp(power)[1] // 2)  # 2^(e-1) <= sigma² < 2^e; 1 for nothing
    return math.sqrt(power), scale


def _greys(values: NDArray[np.float32], scale: float) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore"):  # a signalling NaN is one value like any other
        greys = values * np.float64(LEVELS / scale)
    np.rint(greys, out=greys)
    greys += ZERO
    np.clip(greys, 0, 255, out=greys)
    greys[~np.isfinite(values)] = 255
    return greys.astype(np.uint8)


def _write_caption(strip: NDArray[np.uint8], names: tuple[str, ...], facts: str) -> None:
    """Write names and facts on as many lines as there is room for: three from 256 pixels width on."""
    rows, width = strip.shape
    unit = max(1, width // 256)
    columns = width // (unit * (GLYPH_COLUMNS + 1))
    room = (rows // unit + LINE_ROWS - GLYPH_ROWS) // LINE_ROWS
    top = (rows // unit - room * LINE_ROWS + LINE_ROWS - GLYPH_ROWS) // 2
    named = [line for name in names for line in _fold(name, columns, (room - 1) // len(names))]
    for number, line in enumerate([*named, facts[:columns]][:room]):
        codes = [95 if char == SIGMA else ord(char) - 32 if " " <= char <= "~" else 31 for char in line]
        glyphs = np.pad(_FONT[codes], ((0, 0), (0, 0), (0, 1)))
        row_of_glyphs = glyphs.transpose(1, 0, 2).reshape(GLYPH_ROWS, len(line) * (GLYPH_COLUMNS + 1))
        ink = row_of_glyphs.repeat(unit, 0).repeat(unit, 1)
        start = unit * (top + number * LINE_ROWS)
        strip[start : start + len(ink), unit : unit + ink.shape[1]] = np.where(ink, INK, PAPER)


def _fold(name: str, columns: int, lines: int) -> list[str]:
    """Break a long name after dots into at most ``lines``; the last loses its start if it does not fit."""
    folded: list[str] = []
    while len(name) > columns and len(folded) < lines - 1:
        cut = name.rfind(".", 1, columns) + 1 or columns
        folded.append(name[:cut])
        name = name[cut:]
    return [*folded, name if len(name) <= columns else f"..{name[2 - columns :]}"]


CELL, GAP, LABEL, MARGIN, HEADER = 128, 14, 62, 28, 96  # of a contact sheet, in pixels
COLUMNS, ROWS, LABEL_COLUMNS = 8, 32, 21
TEXT, FAINT = (32, 36, 44), (112, 118, 128)

# Blue for negative, near-white for zero, orange for positive, told apart by colour-blind eyes too: nine
# colours at even steps of perceived lightness, the outer four of equal lightness on both sides.
_COLOUR_STOPS = np.array(
    [
        (5, 51, 95), (32, 95, 159), (85, 144, 208), (155, 193, 237), (244, 244, 243),
        (227, 178, 142), (192, 121, 63), (144, 70, 7), (85, 34, 0),
    ]
)  # fmt: skip
COLOURS = np.stack(
    [np.interp((np.arange(256) - ZERO) / 127, np.linspace(-1, 1, 9), stop) for stop in _COLOUR_STOPS.T],
    axis=1,
).astype(np.uint8)  # grey of a frame → RGB


def contact_sheets(cells: Iterable[tuple[str, Frame]], *, model: str, parameters: int) -> Iterator[bytes]:
    """Draw frames as thumbnails on PNG sheets of 8 columns and at most 32 rows.

    A thumbnail takes every fourth pixel of a 512-pixel picture, so its colours mean what the legend says.

    Args:
        cells: Tensor names and frames; one sheet's thumbnails are in memory at a time.
        model: The title.
        parameters: Number of weights of the whole model.

    Yields:
        One PNG file per sheet; none without cells.
    """
    thumbnails = ((name, _thumbnail(frame), frame.sigma) for name, frame in cells)
    drawn = 0
    while page := list(islice(thumbnails, COLUMNS * ROWS)):
        facts = f"{parameters:,} parameters · tensors {drawn + 1} to {drawn + len(page)}"
        drawn += len(page)
        yield _draw_sheet(page, model, facts)


def _thumbnail(frame: Frame) -> NDArray[np.uint8]:
    """Take one pixel of the picture for each of the thumbnail's; a smaller picture is enlarged."""
    index = np.arange(CELL) * len(frame.picture) // CELL
    return frame.picture[np.ix_(index, index)]


def _draw_sheet(page: list[tuple[str, NDArray[np.uint8], float]], model: str, facts: str) -> bytes:
    rows = -(-len(page) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, HEADER + rows * (CELL + LABEL) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 22), _fold(model, 60, 1)[0], TEXT, ImageFont.load_default(26))
    pen.text((MARGIN, 58), facts, FAINT, ImageFont.load_default(13))
    _draw_legend(sheet, pen, width - MARGIN)
    font = ImageFont.load_default(11)
    for number, (name, greys, sigma) in enumerate(page):
        left = MARGIN + number % COLUMNS * (CELL + GAP)
        top = HEADER + number // COLUMNS * (CELL + LABEL)
        sheet.paste(Image.fromarray(COLOURS[greys]), (left, top))
        lines = [*_fold(name.removesuffix(".weight"), LABEL_COLUMNS, 3), f"sigma {sigma:.3g}"]
        for line, text in enumerate(lines):
            ink = FAINT if line == len(lines) - 1 else TEXT
            pen.text((left, top + CELL + 3 + 13 * line), text, ink, font)
    png = BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def _draw_legend(sheet: Image.Image, pen: ImageDraw.ImageDraw, right: int) -> None:
    """Draw the colours of -5 s to +5 s, right-aligned in the header."""
    font = ImageFont.load_default(11)
    greys = np.arange(ZERO - 5 * LEVELS, ZERO + 5 * LEVELS + 1)
    left, top = right - len(greys) - 8, 24
    sheet.paste(Image.fromarray(COLOURS[np.tile(greys, (14, 1))]), (left, top))
    for tick in range(-5, 6):
        x = left + (tick + 5) * LEVELS
        pen.line([(x, top + 14), (x, top + 17)], FAINT)
        if tick % 5 == 0:
            pen.text((x, top + 19), f"{tick:+d}" if tick else "0", TEXT, font, "ma")
    pen.text((right, top + 34), "weight / s,  s = sigma rounded to a power of two", FAINT, font, "ra")
