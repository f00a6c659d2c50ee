"""The base of a delta: a checkpoint or another reel, read in step with the fine-tune, pinned by digests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hilm.errors import BaseMismatch, UsageError
from hilm.reel.layout import coded_view, cut_slabs
from hilm.reel.manifest import MAX_DEPTH, tensor_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint


class Base(Protocol):
    """What a delta can be taken from."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def depth(self) -> int:
        """Deltas it stands on, itself included."""

    @property
    def state(self) -> str:
        """Changes when any byte of it does; nothing is read for it."""

    def describe(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Element type and shape of a tensor; None if there is none."""

    def pieces(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Stored bytes of a tensor, in order, in arrays the caller may write to."""

    def digest(self) -> str:
        """Digest of its set of tensors."""


def depth_on(base: Base) -> int:
    """Depth of a delta that is taken from this base.

    Raises:
        UsageError: Too many deltas stand on each other.
    """
    if base.depth >= MAX_DEPTH:
        raise UsageError(
            f"{base.name} is the last of {MAX_DEPTH} deltas that stand on each other",
            hint="archive it, or take an earlier base",
        )
    return base.depth + 1


class CheckpointBase:
    """A checkpoint as a base."""

    depth = 0

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self.name, self.state = checkpoint, checkpoint.name, checkpoint.state.hex()
        self._hashes: dict[str, str] = {}

    def describe(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Element type and shape of a tensor; None if there is none."""
        info = self._checkpoint.stored.get(name)
        return None if info is None else (info.dtype, info.shape)

    def pieces(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Stored bytes of a tensor, slab by slab."""
        info = self._checkpoint.stored[name]
        rows, columns, word = coded_view(info.dtype, info.shape)
        reader, position, digest = self._checkpoint.source(info), info.span.start, hashlib.sha256()
        for slab in cut_slabs(rows, columns, word)[0]:
            piece = np.empty(slab.elements * word, np.uint8)
            reader.read_into(position, piece)
            position += len(piece)
            digest.update(piece.data)
            yield piece
        self._hashes[info.alias_of or name] = digest.hexdigest()

    def digest(self) -> str:
        """Digest of its set of tensors; what was not read yet is read now.

        Raises:
            SourceChanged: A file changed while it was read.
        """
        tensors = self._checkpoint.stored
        for info in tensors.values():
            if (info.alias_of or info.name) not in self._hashes:
                for _ in self.pieces(info.name):
                    pass
        self._checkpoint.check_unchanged()
        return tensor_digest(
            (t.name, t.dtype, list(t.shape), self._hashes[t.alias_of or t.name]) for t in tensors.values()
        )


class BaseTensor:
    """One tensor of a base, read in order.

    Args:
        base: The base.
        name: The tensor's name.
        dtype: What its element type must be.
        shape: What its shape must be.

    Raises:
        BaseMismatch: There is no such tensor.
    """

    def __init__(self, base: Base, name: str, dtype: str, shape: Sequence[int]) -> None:
        if base.describe(name) != (dtype, tuple(shape)):
            raise BaseMismatch(f"{base.name} has no tensor {name} of {dtype} {list(shape)}")
        self._label = f"{name} of {base.name}"
        self._pieces, self._rest = base.pieces(name), np.empty(0, np.uint8)
        self._sha256 = hashlib.sha256()

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return the next ``size`` bytes in an array of their own; of a sound tensor there are so many."""
        while len(self._rest) < size:
            piece = next(self._pieces)
            self._sha256.update(piece.data)
            self._rest = np.concatenate([self._rest, piece]) if len(self._rest) else piece
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def sha256(self) -> str:
        """SHA-256 of the whole tensor, hex; reads to its end."""
        for piece in self._pieces:
            self._sha256.update(piece.data)
        return self._sha256.hexdigest()

    def check(self, expected: str) -> None:
        """Compare the whole tensor with what it was when the delta was made.

        Raises:
            BaseMismatch: It is another one.
        """
        found = self.sha256()
        if found != expected:
            raise BaseMismatch(
                f"tensor {self._label} is not the one the delta was made against: "
                f"SHA-256 {found[:12]}…, expected {expected[:12]}…",
                hint="give the base that hilm show names, in the version it had then",
            )
