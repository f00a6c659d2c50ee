"""Which values of a checkpoint are delivered: all of them, or N spread evenly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

import numpy as np

from hilm.errors import EmptySelection, LeaseError, UsageError
from hilm.weights.blocks import decode_ahead
from hilm.weights.roles import resolve_layer_types
from hilm.weights.tensor import BLOCK_VALUES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

OnEscape: TypeAlias = Literal["retire", "error"]

RUN = 64
"""Longest run of consecutive values in a sample."""


class Piece(NamedTuple):
    """Selected values of one tensor, float32.

    ``start`` counts selected values before them; ``positions`` are their flat places in the tensor, None
    where they follow each other from ``start``; ``last`` says that no more of this tensor come.
    """

    info: TensorInfo
    start: int
    values: NDArray[np.float32]
    positions: NDArray[np.int64] | None
    last: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Tensors in storage order, and how many values of each.

    A sample never means the first N values, which would be embedding only: every tensor gives its share, at
    least one value while N allows, as evenly spaced runs of at most 64 consecutive values.
    """

    tensors: tuple[TensorInfo, ...]
    counts: tuple[int, ...]

    @classmethod
    def spread(cls, tensors: tuple[TensorInfo, ...], limit: int | None = None) -> Self:
        """Select all values, or exactly ``min(limit, all)`` by largest remainder.

        Raises:
            UsageError: ``limit`` is below 1.
        """
        sizes = np.array([t.numel for t in tensors], np.int64)
        total = int(sizes.sum())
        if limit is not None and limit < 1:
            raise UsageError(f"a sample of {limit} values; at least 1 is needed")
        if limit is None or limit >= total:
            return cls(tensors, tuple(sizes.tolist()))
        filled = np.flatnonzero(sizes)
        if limit < len(filled):  # not enough for all: the largest give one value each
            chosen = np.lexsort((np.arange(len(sizes)), -sizes))[:limit]
            return cls(tensors, tuple(np.isin(np.arange(len(sizes)), chosen).astype(int).tolist()))
        counts = [0] * len(tensors)
        spare, room = limit - len(filled), total - len(filled)
        quotas = [spare * (int(sizes[i]) - 1) for i in filled]  # Python integers: products pass 2^63
        for i, quota in zip(filled, quotas, strict=True):
            counts[i] = 1 + quota // room
        order = sorted(range(len(filled)), key=lambda k: -(quotas[k] % room))
        for k in order[: limit - sum(counts)]:
            counts[filled[k]] += 1
        return cls(tensors, tuple(counts))

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        limit: int | None = None,
        layers: Sequence[str] | None = None,
        exclude_layers: Sequence[str] | None = None,
    ) -> Self:
        """Select from a checkpoint's weights: some layer types, and ``limit`` values spread over them.

        Raises:
            UnknownLayerType: A filter names no layer type.
            EmptySelection: The filters leave nothing.
            UsageError: ``limit`` is below 1.
            PackedFormatUnsupported: Weights are packed in a way that cannot be decoded.
        """
        wanted, unwanted = resolve_layer_types(layers or []), resolve_layer_types(exclude_layers or [])
        owners = (t for t in checkpoint.tensors.values() if t.alias_of is None)
        weights = [t for t in owners if t.is_weight or t.refusal]
        chosen = tuple(
            t for t in weights if (not wanted or t.role.type in wanted) and t.role.type not in unwanted
        )
        if not chosen:
            present = Counter(t.role.type for t in weights)
            counts = ", ".join(f"{kind} {count}" for kind, count in sorted(present.items())) or "none"
            raise EmptySelection(
                f"the layer filters leave no weights of {checkpoint.name}", hint=f"tensors by type: {counts}"
            )
        for tensor in chosen:
            tensor.require_values()
        return cls.spread(chosen, limit)

    @property
    def total(self) -> int:
        """Values selected in all."""
        return sum(self.counts)

    def positions(self, index: int, begin: int = 0, end: int | None = None) -> NDArray[np.int64] | None:
        """Flat ascending positions in tensor number ``index``, of selected values ``begin`` to ``end``.

        None means that all values of the tensor are selected.
        """
        size, count = self.tensors[index].numel, self.counts[index]
        if count == size:
            return None
        runs = -(-count // RUN)
        ordinals = np.arange(begin, count if end is None else end, dtype=np.int64)
        run = ((ordinals + 1) * runs - 1) // count  # run j starts at ordinal ⌊j·count/runs⌋
        return ordinals + run * (size - count) // runs

    def values(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        """All selected values behind each other, float32."""
        return np.concatenate([np.empty(0, np.float32), *(p.values.copy() for p in self.read(checkpoint))])

    def read(
        self, checkpoint: Checkpoint, *, threads: int = 1, on_escape: OnEscape = "retire"
    ) -> Iterator[Piece]:
        """Deliver the selected values, tensor by tensor in storage order, in pieces of bounded size.

        Args:
            checkpoint: The checkpoint selected from.
            threads: Decode whole tensors in so many threads; the pieces are the same.
            on_escape: What to do when a consumer keeps more arrays than there are buffers: ``retire`` leaves
                it a buffer and takes a fresh one, ``error`` raises.

        Raises:
            LeaseError: Arrays were kept, and ``on_escape`` is ``error``.
        """
        if sum(self.counts) == sum(t.numel for t in self.tensors):
            blocks = checkpoint.blocks(frozenset(t.name for t in self.tensors))
            for block in blocks if threads == 1 else decode_ahead(blocks, threads):
                if block.escaped and on_escape == "error":
                    raise LeaseError(f"{block.escaped} were kept", hint="copy what is needed for longer")
                yield Piece(block.info, block.start, block.values, None, block.last)
            return
        for number, group in groupby(range(len(self.tensors)), key=lambda i: self.tensors[i].span.file):
            indices = list(group)
            checkpoint.expect(number, chain.from_iterable(map(self._runs, indices)))
            for index in indices:
                info, count = self.tensors[index], self.counts[index]
                for begin, end, places in self._batches(index):
                    if places is None:
                        values = checkpoint.values(info.name, begin, end)
                    else:
                        values = read_positions(checkpoint, info, places)
                    yield Piece(info, begin, values, places, end == count)

    def _batches(self, index: int) -> Iterator[tuple[int, int, NDArray[np.int64] | None]]:
        """Selected values of a tensor by number, ``BATCH`` at a time, with their positions."""
        count = self.counts[index]
        for begin in range(0, count, BATCH):
            end = min(begin + BATCH, count)
            yield begin, end, self.positions(index, begin, end)

    def _runs(self, index: int) -> Iterator[tuple[TensorInfo, int, int]]:
        """What reading a tensor's selected values reads."""
        for begin, end, places in self._batches(index):
            if places is None:
                yield self.tensors[index], begin, end
            else:
                for part in _clusters(places):
                    yield self.tensors[index], int(places[part[0]]), int(places[part[-1]]) + 1


BATCH = 1 << 16
"""Values of a sample that are looked up at a time."""

GAP = 16_384
"""Unwanted values between two runs that one read spans: cheaper than a second call."""


def read_positions(
    checkpoint: Checkpoint, info: TensorInfo, positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Values at ascending flat positions, float32; reads nothing far from them."""
    out = np.empty(len(positions), np.float32)
    for part in _clusters(positions):
        start, stop = int(positions[part[0]]), int(positions[part[-1]]) + 1
        out[part] = checkpoint.values(info.name, start, stop)[positions[part] - start]
    return out


def _clusters(positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of positions that one read spans, a megabyte of float32 at most."""
    jumps = (np.diff(positions) > GAP) | (np.diff(positions // BLOCK_VALUES) > 0)
    return np.split(np.arange(len(positions)), np.flatnonzero(jumps) + 1)
