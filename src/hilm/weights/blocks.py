"""Blocks: every value of a checkpoint once, in order, in a few reused buffers."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import numpy as np

from hilm.errors import HilmError, LeaseError
from hilm.weights.dtypes import decode
from hilm.weights.tensor import BLOCK_VALUES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from hilm.weights.byte_source import Reader
    from hilm.weights.tensor import TensorInfo

RING = 3
"""Buffers in turn: the one being filled, and two that a consumer may still be looking at."""

MOST = 8
"""Buffers a ring may grow to while blocks are being decoded ahead, kept or held."""

STALE = np.uint32(0x7FC0DEAD)
"""What a poisoned buffer is filled with: a NaN that is easy to recognise."""

POISON = os.environ.get("HILM_POISON") == "1"
"""Whether every buffer is overwritten before it is reused, so that a stale view shows; tests run so."""

COUNTS_REFERENCES = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
"""Whether a reference count tells that nobody looks at an array; elsewhere no buffer is ever reused."""


PLAIN = frozenset({"F32", "F64", "C64", "BF16"})
"""Types whose decoding is little more than a copy, which takes less time than waking another thread."""


class Block:
    """Consecutive values of one tensor.

    Its arrays are reused once nobody refers to them: whoever keeps one keeps the buffer too, and the stream
    goes on with another. An address is no reference; whoever hands one on holds the block meanwhile.

    Attributes:
        info: The tensor.
        start: First value, as a flat position in the tensor.
        stop: One behind the last.
        words: Stored little-endian bytes, ``uint8``.
    """

    __slots__ = ("_buffers", "_out", "_ring", "_values", "info", "start", "stop", "words")

    def __init__(self, ring: _Ring, buffers: _Buffers, info: TensorInfo, start: int, stop: int) -> None:
        self.info, self.start, self.stop = info, start, stop
        self._ring, self._buffers = ring, buffers
        self._out = buffers.values[: stop - start]
        stored = self._out.view(np.uint8) if info.type.name == "F32" else buffers.bytes
        self.words = stored[: info.type.nbytes(stop - start)]
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

    @property
    def escaped(self) -> str:
        """The block whose buffer the stream gave up last, because its arrays were kept; empty if none."""
        return self._ring.escaped

    def hold(self) -> Lease:
        """Keep the buffer as it is until the lease is released.

        Raises:
            LeaseError: All buffers but one are held, or the stream was closed.
        """
        return Lease(self._ring, self._buffers)


class Lease:
    """A buffer kept out of the ring until ``release``, by any thread; a context manager.

    Raises:
        LeaseError: It is released twice, or after the stream was closed.
    """

    __slots__ = ("_buffers", "_ring")

    def __init__(self, ring: _Ring, buffers: _Buffers) -> None:
        ring.require_open()
        if not buffers.leases and ring.held == MOST - 1:
            raise LeaseError(
                f"{ring.held} blocks are held; one of {MOST} buffers must be left to read into",
                hint="release the oldest lease first, or copy the values",
            )
        self._ring, self._buffers = ring, buffers
        buffers.leases.add(self)

    def release(self) -> None:
        """Give the buffer back."""
        self._ring.require_open()
        if self not in self._buffers.leases:
            raise LeaseError("the lease was released before", hint="release each lease once")
        self._buffers.leases.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Buffers:
    """A value buffer and a byte buffer; F32 is read straight into the former."""

    def __init__(self) -> None:
        self.values = np.empty(BLOCK_VALUES, np.float32)
        self.bytes = np.empty(0, np.uint8)
        self.leases: set[Lease] = set()
        self.used = BLOCK_VALUES
        self.content: tuple[int, int, str] = 0, 0, ""

    @property
    def idle(self) -> bool:
        """Whether nobody looks at them or holds them; two references are this object's and the call's."""
        return not self.leases and sys.getrefcount(self.values) <= 2 and sys.getrefcount(self.bytes) <= 2

    def reserve(self, count: int, nbytes: int, *, poison: bool) -> None:
        """Make room for ``count`` values, and as many stored bytes."""
        if len(self.bytes) < nbytes:
            self.bytes = np.empty(nbytes, np.uint8)
        if poison:
            self.values[: self.used].view(np.uint32)[:] = STALE
            self.bytes[:] = 0xDE
        self.used = count


class _Ring:
    """Buffers in the order of their last use."""

    def __init__(self, *, poison: bool) -> None:
        self._buffers = deque(_Buffers() for _ in range(RING))
        self._poison = poison
        self.escaped, self.closed = "", False

    @property
    def held(self) -> int:
        return sum(bool(buffers.leases) for buffers in self._buffers)

    def require_open(self) -> None:
        if self.closed:
            raise LeaseError("the stream that filled this buffer was closed")

    def take(self) -> _Buffers:
        """The idle buffers used longest ago, or else fresh ones."""
        if not COUNTS_REFERENCES:
            return _Buffers()
        found = next((buffers for buffers in self._buffers if buffers.idle), None)
        if found is None and len(self._buffers) == MOST:  # what escapes now belongs to who keeps it
            kept = next(buffers for buffers in self._buffers if not buffers.leases)
            self.escaped = "values {:,} to {:,} of {}".format(*kept.content)
            self._buffers.remove(kept)
        elif found is not None:
            self._buffers.remove(found)
        self._buffers.append(found or _Buffers())
        return self._buffers[-1]

    def fill(self, source: Reader, info: TensorInfo, start: int, stop: int) -> Block:
        buffers, count = self.take(), stop - start
        buffers.reserve(count, 0 if info.type.name == "F32" else info.type.nbytes(count), poison=self._poison)
        buffers.content = start, stop, info.name
        block = Block(self, buffers, info, start, stop)
        source.read_into(info.span.start + info.type.nbytes(start), block.words)
        return block


def read_blocks(tensors: Iterable[tuple[TensorInfo, Reader]], *, poison: bool = False) -> Iterator[Block]:
    """Deliver the canonical blocks of tensors, one tensor after the other.

    Args:
        tensors: Tensors with the files that hold them.
        poison: Overwrite buffers before they are reused, so that a stale view shows at once.
    """
    ring = _Ring(poison=poison or POISON)
    try:
        for info, source in tensors:
            for start, stop in info.cuts():
                yield ring.fill(source, info, start, stop)
    except GeneratorExit:
        ring.closed = True
        raise


def decode_ahead(blocks: Iterable[Block], threads: int) -> Iterator[Block]:
    """Deliver the same blocks in the same order, decoded by several threads while later ones are read.

    An error in reading surfaces after the blocks before it, one in decoding where values are asked for.
    """
    window: deque[tuple[Block, Future[object]]] = deque()

    def first() -> Block:
        block, decoded = window.popleft()
        decoded.exception()
        return block

    with ThreadPoolExecutor(threads, "hilm-decode") as pool:
        try:
            for block in blocks:
                plain = block.info.type.name in PLAIN
                if not plain:
                    window.append((block, pool.submit(getattr, block, "values")))
                while len(window) > (0 if plain else threads):
                    yield first()
                if plain:
                    yield block
        except HilmError:
            while window:
                yield first()
            raise
        while window:
            yield first()
