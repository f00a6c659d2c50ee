"""Draw a whole checkpoint, one frame per tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hilm.reel.preview import Frame, Sampler, draw_tensor
from hilm.weights.dtypes import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from hilm.reel.delta_base import Base
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo


def draw_checkpoint(
    checkpoint: Checkpoint, base: Base | None = None
) -> Iterator[tuple[TensorInfo, Frame, bool]]:
    """Yield every stored tensor with its frame, in checkpoint order; the flag says that it was sampled.

    Values that cannot be decoded are drawn as the bytes they share. Of tensors that a base has too, the
    difference is drawn.
    """
    for block in checkpoint.blocks(stored=True):
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
            frame = draw_tensor(
                sampler.values, name=info.name, dtype=dtype, shape=info.shape, sampled=sampler.sampled
            )
            yield info, frame, sampler.sampled


def _sample_base(base: Base, info: TensorInfo) -> NDArray[np.float32]:
    """Values of the base where those of the tensor are drawn."""
    sampler, position = Sampler(info.numel), 0
    for piece in base.pieces(info.name):
        values = np.empty(info.type.count(len(piece)), np.float32)
        decode(info.type, piece, values)
        sampler.add(position, values)
        position += values.size
    return sampler.values
