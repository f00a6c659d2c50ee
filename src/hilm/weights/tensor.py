"""One tensor: where its bytes are, what it does, and how it is cut into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hilm.errors import PackedFormatUnsupported
from hilm.weights.dtypes import DTYPES, DType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.weights.packed_schemes import Packed
    from hilm.weights.roles import Role

BLOCK_VALUES = 1 << 18
"""Values of a block: 1 MiB of float32."""

STACK_MIN_COLUMNS = 32
"""A 3-D tensor with more columns than this is a stack of matrices (experts), else a kernel."""

_MATRIX, _STACK = 2, 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as the header of a file describes it, checked.

    Attributes:
        name: As stored, or the keys on the way to it joined by dots.
        dtype: A name of ``DTYPES``.
        shape: Sizes, in C order.
        start: Absolute position of its first byte.
        stop: One behind its last byte; for a strided view, others' bytes may lie between.
        strides: Distance of neighbours along each axis in elements; None if they lie in C order without gaps.
        alias_of: An earlier name of the same values.
        big_endian: Whether the bytes of each value are stored most significant first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...] | None = None
    alias_of: str | None = None
    big_endian: bool = False

    @property
    def in_order(self) -> bool:
        """Whether the stored bytes are the values in order, least significant byte first."""
        return self.strides is None and not self.big_endian


@dataclass(frozen=True, slots=True)
class Listing:
    """What one file holds.

    Attributes:
        entries: Its tensors in file order.
        metadata: Text pairs beside them.
        notes: What was left out or tolerated.
        outside: Tensors that lie in files beside it, by the file's name.
    """

    entries: tuple[Entry, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outside: dict[str, tuple[Entry, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """An absolute byte range of ``Checkpoint.files[file]``."""

    file: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor, as stored or as decoded from several that are stored.

    Attributes:
        name: As stored.
        dtype: A name of ``DTYPES`` such as ``BF16`` or ``Q4_K``; of a packed tensor the scheme, ``GPTQ4``.
        shape: As stored, of a packed tensor as decoded; ``()`` is a scalar.
        span: Where its bytes are; of a packed tensor those of its codes.
        role: What it does in the model.
        alias_of: Another name of the same bytes, which is the one that is read.
        in_order: Whether the stored bytes are the values in order: not if strided or packed.
        packed: How to decode it from its parts; None if it is stored as it is.
        refusal: Why it, a part of something packed, cannot be decoded; empty for all other tensors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    span: Span
    role: Role
    alias_of: str | None = None
    in_order: bool = True
    packed: Packed | None = field(default=None, compare=False)
    refusal: str = ""

    @property
    def type(self) -> DType:
        """The element type; packed tensors are read as float32."""
        return DTYPES["F32" if self.packed else self.dtype]

    @property
    def stated_bits(self) -> int | None:
        """Bits of a quantised value where scheme or type state them, else None."""
        if self.packed:
            return self.packed.bits
        return self.type.bits if self.type.kind == "block" else None

    @property
    def numel(self) -> int:
        """Number of values; a complex number counts as two."""
        return math.prod(self.shape) * self.type.values

    @property
    def nbytes(self) -> int:
        """Bytes of its values as they are stored, with all that decoding them needs."""
        if self.packed:
            return sum(part.nbytes for _, part in self.packed.parts)
        return self.type.nbytes(self.numel)

    @property
    def is_weight(self) -> bool:
        """Whether its values are weights that can be decoded: floating, complex or quantised."""
        return self.type.is_weight and not self.refusal

    def require_values(self) -> None:
        """Raise ``PackedFormatUnsupported`` if it is a part of something that cannot be decoded."""
        if self.refusal:
            raise PackedFormatUnsupported(f"{self.name}: {self.refusal}")

    @property
    def matrices(self) -> tuple[int, int, int]:
        """The tensor as ``(count, rows, columns)``: a stack of experts apart, else ``(1, R, C)``."""
        shape = (*self.shape, 2) if self.type.values > 1 else self.shape
        if len(shape) < _MATRIX:
            return 1, 1, math.prod(shape)
        if len(shape) == _STACK and shape[2] > STACK_MIN_COLUMNS:
            return shape[0], shape[1], shape[2]
        return 1, shape[0], math.prod(shape[1:])

    def cuts(self) -> Iterator[tuple[int, int]]:
        """The canonical blocks, as flat half-open ranges of values.

        Whole rows of one matrix at a time, a power of two of them, at most ``BLOCK_VALUES`` values; a longer
        row is cut flat. The cut depends on the shape alone, hence so does all arithmetic done by block.
        """
        count, rows, columns = self.matrices
        size = rows * columns
        if self.type.kind == "packed":
            count, size, columns = 1, self.numel, self.numel
        if self.numel == 0:
            yield 0, 0
            return
        step = BLOCK_VALUES
        if columns <= BLOCK_VALUES:
            step = columns << (BLOCK_VALUES // columns).bit_length() - 1
        for matrix in range(0, count * size, size):
            row_end = columns if columns > BLOCK_VALUES else size
            for row in range(matrix, matrix + size, row_end):
                for start in range(row, row + row_end, step):
                    yield start, min(start + step, row + row_end)
