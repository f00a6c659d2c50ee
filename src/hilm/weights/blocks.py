"""Blocks: every value of a checkpoint once, in order, in a few reused buffers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from hilm.weights.dtypes import decode
from hilm.weights.tensor import BLOCK_VALUES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from hilm.weights.byte_source import Reader
    from hilm.weights.tensor import TensorInfo

RING = 3
"""Buffers in turn: the one being filled, and two that a consumer may still be looking at."""

STALE = np.uint32(0x7FC0DEAD)
"""What a poisoned buffer is filled with: a NaN that is easy to recognise."""


class Block:
    """Consecutive values of one tensor.

    Its arrays are reused: they hold these values until two further blocks have been taken. A consumer that
    keeps an array keeps the buffer too; the stream then goes on with a fresh one.

    Attributes:
        info: The tensor.
        start: First value, as a flat position in the tensor.
        stop: One behind the last.
        words: Stored little-endian bytes, ``uint8``.
    """

    __slots__ = ("_out", "_values", "info", "start", "stop", "words")

    def __init__(
        self, info: TensorInfo, start: int, stop: int, words: NDArray[np.uint8], out: NDArray[np.float32]
    ) -> None:
        self.info, self.start, self.stop, self.words = info, start, stop, words
        self._out = out
        self._values: NDArray[np.float32] | None = None

    @property
    def values(self) -> NDArray[np.float32]:
        """The values as float32, one-dimensional; decoded when first asked for."""
        if self._values is None:
            if self.info.type.name != "F32":
                decode(self.info.type, self.words, self._out)
            self._values = self._out
        return self._values

    @property
    def first(self) -> bool:
        """Whether the tensor starts here."""
        return self.start == 0

    @property
    def last(self) -> bool:
        """Whether the tensor ends here."""
        return self.stop == self.info.numel


class _Buffers:
    """A value buffer and a byte buffer; F32 is read straight into the former."""

    def __init__(self) -> None:
        self.values = np.empty(BLOCK_VALUES, np.float32)
        self.bytes = np.empty(0, np.uint8)

    def reuse(self, nbytes: int, *, poison: bool) -> None:
        """Make room for ``nbytes``, leaving arrays that somebody still looks at to that somebody."""
        if sys.getrefcount(self.values) > 2:
            self.values = np.empty(BLOCK_VALUES, np.float32)
        if sys.getrefcount(self.bytes) > 2 or len(self.bytes) < nbytes:
            self.bytes = np.empty(nbytes, np.uint8)
        if poison:
            self.values.view(np.uint32)[:] = STALE
            self.bytes[:] = 0xDE

    def fill(self, source: Reader, info: TensorInfo, start: int, stop: int) -> Block:
        nbytes = info.type.nbytes(stop - start)
        values = self.values[: stop - start]
        words = values.view(np.uint8) if info.type.name == "F32" else self.bytes[:nbytes]
        source.read_into(info.span.start + info.type.nbytes(start), words)
        return Block(info, start, stop, words, values)


def read_blocks(tensors: Iterable[tuple[TensorInfo, Reader]], *, poison: bool = False) -> Iterator[Block]:
    """Deliver the canonical blocks of tensors, one tensor after the other.

    Args:
        tensors: Tensors with the files that hold them.
        poison: Overwrite buffers before they are reused, so that a stale view shows at once.
    """
    ring, turn = [_Buffers() for _ in range(RING)], 0
    for info, source in tensors:
        for start, stop in info.cuts():
            buffers = ring[turn]
            turn = (turn + 1) % RING
            nbytes = 0 if info.type.name == "F32" else info.type.nbytes(stop - start)
            buffers.reuse(nbytes, poison=poison)
            yield buffers.fill(source, info, start, stop)
