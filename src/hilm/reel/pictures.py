"""Draw a whole checkpoint, one frame per tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hilm.reel.preview import Frame, Sampler, draw_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo


def draw_checkpoint(checkpoint: Checkpoint) -> Iterator[tuple[TensorInfo, Frame, bool]]:
    """Yield every stored tensor with its frame, in checkpoint order; the flag says that it was sampled.

    Values that cannot be decoded are drawn as the bytes they share.
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
            frame = draw_tensor(
                sampler.values, name=info.name, dtype=info.dtype, shape=info.shape, sampled=sampler.sampled
            )
            yield info, frame, sampler.sampled
