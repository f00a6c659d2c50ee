"""The values of a checkpoint or reel that its pictures show, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hilm.reel.decoder import Reel
from hilm.reel.preview import Frame, Sampler, draw_tensor
from hilm.weights.dtypes import DTYPES, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from hilm.reel.delta_base import Base
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo


@dataclass(frozen=True, slots=True, eq=False)
class Drawable:
    """What is drawn of one tensor.

    Attributes:
        name: Of the tensor.
        dtype: Stored dtype.
        shape: Stored shape.
        values: float32, at most 512² of them; what cannot be decoded is drawn as the bytes it shares.
        sampled: Whether some values are left out.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: NDArray[np.float32]
    sampled: bool

    def draw(self) -> Frame:
        """Draw it, at its own scale."""
        return draw_tensor(
            self.values, name=self.name, dtype=self.dtype, shape=self.shape, sampled=self.sampled
        )


def drawables(
    source: Checkpoint | Reel, names: frozenset[str] | None = None, base: Base | None = None
) -> Iterator[Drawable]:
    """Yield every stored tensor, or the ones named, in the order of the source.

    Of a checkpoint's tensors that a base has too, the difference is drawn.
    """
    return _of_reel(source, names) if isinstance(source, Reel) else _of_checkpoint(source, names, base)


def _of_checkpoint(
    checkpoint: Checkpoint, names: frozenset[str] | None, base: Base | None
) -> Iterator[Drawable]:
    for block in checkpoint.blocks(names, stored=True):
        info = block.info
        packed = info.type.kind == "packed"
        if block.first:
            sampler = Sampler(info.nbytes if packed else info.numel)
        if packed:
            sampler.add(info.type.nbytes(block.start), block.words.astype(np.float32))
        else:
            sampler.add(block.start, block.values)
        if block.last:
            dtype = info.dtype
            if base is not None and info.type.block == 1 and base.describe(info.name) == (dtype, info.shape):
                with np.errstate(invalid="ignore"):  # signalling NaNs, and differences of infinities
                    sampler.values -= _sample_base(base, info)
                dtype = f"{dtype} minus base"
            yield Drawable(info.name, dtype, info.shape, sampler.values, sampler.sampled)


def _sample_base(base: Base, info: TensorInfo) -> NDArray[np.float32]:
    """Values of the base where those of the tensor are drawn."""
    sampler, position = Sampler(info.numel), 0
    for piece in base.pieces(info.name):
        values = np.empty(info.type.count(len(piece)), np.float32)
        decode(info.type, piece, values)
        sampler.add(position, values)
        position += values.size
    return sampler.values


def _of_reel(reel: Reel, names: frozenset[str] | None) -> Iterator[Drawable]:
    for name, entry in reel.tensors.items():
        if entry.get("alias_of") is not None or (names is not None and name not in names):
            continue
        dtype, start = DTYPES[entry["dtype"]], 0
        packed = dtype.kind == "packed"
        sampler = Sampler(entry["nbytes"] if packed else dtype.count(entry["nbytes"]))
        # Slabs cut through quantised blocks.
        for words in reel.pieces(name) if dtype.block == 1 else [reel.words(name)]:
            values = words.astype(np.float32) if packed else np.empty(dtype.count(len(words)), np.float32)
            if not packed:
                decode(dtype, words, values)
            sampler.add(start, values)
            start += len(values)
        yield Drawable(name, entry["dtype"], tuple(entry["shape"]), sampler.values, sampler.sampled)
