"""Values that PyTorch stored in another order than that of their tensor, or in the other byte order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import as_strided

from hilm.errors import MemoryLimitError
from hilm.weights.dtypes import DTYPES
from hilm.weights.torch_objects import item_bytes, packed_strides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from hilm.weights.tensor import Entry

STRIDED_MEMORY = 1 << 30
"""Bytes that putting one tensor's values in order may take."""

TILE = 16 << 20
"""Bytes read at a time for that."""


@dataclass(frozen=True, slots=True)
class OrderedSource:
    """The ordered bytes of one tensor, at the positions they would have if they were stored in order.

    Attributes:
        load: Gives all of them.
        start: Position of the first.
    """

    load: Callable[[], NDArray[np.uint8]]
    start: int

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the bytes from ``start`` on."""
        begin = start - self.start
        out[:] = self.load()[begin : begin + len(out)]


def read_strided(read_into: Callable[[int, NDArray[np.uint8]], None], entry: Entry) -> NDArray[np.uint8]:
    """Return one tensor's values in C order as little-endian bytes, however they are stored.

    Args:
        read_into: ``read_into(start, out)`` fills ``out`` with the bytes of the file from ``start`` on.
        entry: The tensor.

    Raises:
        MemoryLimitError: The values, or the span they are scattered over, exceed ``STRIDED_MEMORY``.
    """
    item = item_bytes(entry.dtype)
    shape = entry.shape or (1,)
    strides = entry.strides or packed_strides(shape)
    if math.prod(shape) * item > STRIDED_MEMORY:
        raise MemoryLimitError(f"{entry.name} takes over {STRIDED_MEMORY >> 20} MiB once it is in order")
    out = np.empty(shape, f"u{item}")
    for part, start, extent in _tiles(shape, strides, item) if out.size else ():
        if extent * item > STRIDED_MEMORY:
            raise MemoryLimitError(f"{entry.name} is scattered over {extent * item:,} bytes")
        stored = np.empty(extent, out.dtype)
        read_into(entry.start + start * item, stored.view(np.uint8))
        target = out[part]
        target[...] = as_strided(stored, target.shape, [s * item for s in strides], writeable=False)
    words = out.reshape(-1).view(DTYPES[entry.dtype].word)
    if entry.big_endian:
        words.byteswap(inplace=True)
    return words.view(np.uint8)


def _tiles(
    shape: tuple[int, ...], strides: tuple[int, ...], item: int
) -> Iterator[tuple[tuple[slice, ...], int, int]]:
    """Cut along the axis that reaches farthest: (part of the tensor, its first element, its extent)."""
    reach = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    axis = reach.index(max(reach))
    step = max(TILE // item // max(strides[axis], 1), 1)
    for first in range(0, shape[axis], step):
        stop = min(first + step, shape[axis])
        extent = 1 + sum(reach) - reach[axis] + (stop - first - 1) * strides[axis]
        yield (slice(None),) * axis + (slice(first, stop),), first * strides[axis], extent
