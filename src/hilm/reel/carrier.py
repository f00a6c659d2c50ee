"""Carriers: what coded chunks ride in. The rule is packed streams; a lossless video is on offer.

A chunk is one frame, its symbols are the grey values, and what grey values cannot hold goes to a record of
the reel: ``u32 escapes | i64 escape[…] | raw bits``. Rounded weights are their index plus 128; index 0 and
grey 0 stand for an escape. Nothing here needs a video library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from hilm.errors import ChecksumMismatch, UsageError
from hilm.reel.curve import cells
from hilm.reel.layout import CHUNK_ELEMENTS
from hilm.reel.words import WordView, word_view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hilm.weights.dtypes import DType

SIDE: Final = 512
FPS: Final = 25
LAYOUTS: Final = ("raster", "flat", "hilbert")
MIDDLE: Final = 128
"""Grey of index 0, and of unused cells where weights are rounded."""

_LEAST = CHUNK_ELEMENTS // 4  # of a slab: the rest of a frame is not free
_ESCAPES = 1000  # elements for each that may be beyond the grey values
_RASTER_CELLS = 9 / 8  # cells for each element that raster may take
_HEAD = np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class Carrier:
    """A lossless video codec and the file its packets lie in.

    Attributes:
        codec: FFmpeg's name of it.
        encoder: FFmpeg's name of the encoder.
        pixel_format: FFmpeg's; its first plane holds the symbols, others are grey 128.
        container: FFmpeg's name of the file format.
        suffix: Of the companion file; empty where the video stands in front of the reel.
        options: Of the encoder.
        muxer: Options of the container.
        tag: FourCC that the decoder insists on.
    """

    codec: str
    encoder: str
    pixel_format: str
    container: str
    suffix: str
    options: Mapping[str, str]
    muxer: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""


CARRIERS: Final[Mapping[str, Carrier]] = MappingProxyType({
    "ffv1": Carrier(
        "ffv1", "ffv1", "gray", "matroska", ".mkv",
        {"level": "3", "slicecrc": "1", "slices": "4", "coder": "0", "context": "0"},
    ),
    "utvideo": Carrier("utvideo", "utvideo", "yuv420p", "avi", ".avi", {"pred": "none"}, tag="ULY0"),
    "vp9": Carrier(
        "vp9", "libvpx-vp9", "yuv420p", "mp4", "",
        {"lossless": "1", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"},
        {"movflags": "+faststart"},
    ),
})  # fmt: skip
SUFFIXES: Final = tuple(carrier.suffix for carrier in CARRIERS.values() if carrier.suffix)


def carrier_settings(carrier: str, layout: str) -> dict[str, Any]:
    """Settings of a carrier; none of the packed one.

    Raises:
        UsageError: There is no such carrier or layout.
    """
    if carrier not in {"packed", *CARRIERS} or layout not in {"auto", *LAYOUTS}:
        raise UsageError(
            f"no carrier {carrier!r} with layout {layout!r}",
            hint=f"packed, {', '.join(CARRIERS)}; auto, {', '.join(LAYOUTS)}",
        )
    return {} if carrier == "packed" else {"carrier": carrier, "layout": layout}


class Carried(NamedTuple):
    """A chunk on its way through a video: grey values, uint8 [n], and the bytes of its record."""

    pixels: NDArray[np.uint8]
    data: bytes

    @classmethod
    def of_indices(cls, indices: NDArray[np.int32]) -> Carried:
        """Carry indices of rounded weights."""
        beyond = np.abs(indices) >= MIDDLE
        pixels = np.where(beyond, 0, indices + MIDDLE).astype(np.uint8)
        return cls(pixels, pack_data(indices[beyond]))

    def indices(self) -> NDArray[np.int32]:
        """Undo `of_indices`.

        Raises:
            ChecksumMismatch: Pixels and record do not belong together.
        """
        escapes, raw = self.parts()
        indices, beyond = self.pixels.astype(np.int32) - MIDDLE, self.pixels == 0
        if np.count_nonzero(beyond) != escapes.size or raw.size:
            raise ChecksumMismatch(f"record of {escapes.size} escapes belongs to another frame")
        if (np.abs(escapes) >= 1 << 31).any():
            raise ChecksumMismatch("an escape is no index")
        indices[beyond] = escapes
        return indices

    def parts(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Escapes and raw bits of the record.

        Raises:
            ChecksumMismatch: The record is cut.
        """
        count = int.from_bytes(self.data[:4], "little")
        end = _HEAD.itemsize + 8 * count
        if end > len(self.data):
            raise ChecksumMismatch(f"record of {len(self.data)} bytes promises {count} escapes")
        return np.frombuffer(self.data, "<i8", count, 4), np.frombuffer(self.data, np.uint8, offset=end)


def pack_data(escapes: NDArray[np.signedinteger], raw: bytes = b"") -> bytes:
    """The record beside a frame."""
    return np.array(escapes.size, _HEAD).tobytes() + escapes.astype("<i8").tobytes() + raw


def is_carried(elements: int) -> bool:
    """Whether a slab is large enough for a video; smaller ones are packed, for a frame has a price."""
    return elements >= _LEAST


def too_many_escapes(chunks: list[Carried]) -> bool:
    """Whether more than 0.1 % of a slab is beyond the grey values: such a slab is packed."""
    escapes = sum(chunk.parts()[0].size for chunk in chunks)
    return escapes * _ESCAPES > sum(chunk.pixels.size for chunk in chunks)


@dataclass(frozen=True)
class Placement:
    """Where the elements of a slab lie in its frames.

    ``flat`` fills frames line by line with consecutive elements, ``hilbert`` along the curve; ``raster``
    cuts the matrix into tiles of 512 x 512.

    Attributes:
        rows: R.
        columns: C.
        layout: One of `LAYOUTS`.
    """

    rows: int
    columns: int
    layout: str

    @cached_property
    def tiles(self) -> list[tuple[int, int]]:
        """Height and width of what each frame holds; a frame of consecutive elements has one line."""
        if self.layout == "raster":
            return [(h, w) for h in _sides(self.rows, SIDE) for w in _sides(self.columns, SIDE)]
        return [(1, n) for n in _sides(self.rows * self.columns, CHUNK_ELEMENTS)]

    @property
    def lengths(self) -> list[int]:
        """Elements of each chunk."""
        return [height * width for height, width in self.tiles]

    @property
    def padded(self) -> bool:
        """Whether tiles leave more than an eighth of the cells unused."""
        return (
            self.layout == "raster" and len(self.tiles) * SIDE**2 > _RASTER_CELLS * self.rows * self.columns
        )

    def view(self, dtype: DType) -> WordView:
        """The slab as one row of words in coding order, cut where its frames are."""
        kind = word_view(dtype, 1, self.rows * self.columns)
        ends = np.cumsum(self.lengths).tolist()
        spans = tuple(zip([0, *ends[:-1]], ends, strict=True))
        return WordView(kind.kind, kind.word, 1, kind.columns, kind.mantissa, kind.signed, spans)

    def arrange(self, elements: NDArray[Any]) -> NDArray[Any]:
        """Bring [R * C] elements from the order of rows into that of coding."""
        if self.layout != "raster":
            return elements
        return np.concatenate([tile.ravel() for tile in self._cut(elements.reshape(self.rows, -1))])

    def restore(self, elements: NDArray[Any]) -> NDArray[Any]:
        """Undo `arrange`."""
        if self.layout != "raster":
            return elements
        out, at = np.empty((self.rows, self.columns), elements.dtype), 0
        for tile in self._cut(out):
            tile[:] = elements[at : at + tile.size].reshape(tile.shape)
            at += tile.size
        return out.reshape(-1)

    def draw(self, number: int, pixels: NDArray[np.uint8], unused: int) -> NDArray[np.uint8]:
        """Frame [512, 512] of one chunk."""
        frame = np.full((SIDE, SIDE), unused, np.uint8)
        height, width = self.tiles[number]
        if self.layout == "raster":
            frame[:height, :width] = pixels.reshape(height, width)
        else:
            frame.reshape(-1)[self._places(width)] = pixels
        return frame

    def read(self, number: int, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Undo `draw`."""
        height, width = self.tiles[number]
        if self.layout == "raster":
            return frame[:height, :width].reshape(-1)
        return frame.reshape(-1)[self._places(width)]

    def _places(self, count: int) -> NDArray[np.int32] | slice:
        return cells(9)[:count] if self.layout == "hilbert" else slice(count)

    def _cut(self, matrix: NDArray[Any]) -> list[NDArray[Any]]:
        lines, rows = range(0, self.rows, SIDE), range(0, self.columns, SIDE)
        return [matrix[r : r + SIDE, c : c + SIDE] for r in lines for c in rows]


def _sides(total: int, step: int) -> list[int]:
    return [min(step, total - start) for start in range(0, total, step)]
