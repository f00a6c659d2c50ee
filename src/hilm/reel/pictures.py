"""Draw a whole checkpoint, one frame per tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hilm.reel.preview import Frame, Sampler, draw_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.weights.checkpoint import Checkpoint, TensorInfo


def draw_checkpoint(checkpoint: Checkpoint) -> Iterator[tuple[TensorInfo, Frame, bool]]:
    """Yield every stored tensor with its frame, in checkpoint order; the flag says that it was sampled.

    Values that share bytes cannot be decoded and are drawn as those bytes.
    """
    for block in checkpoint.blocks(include_integer=True):
        info = block.info
        packed = info.type.kind == "packed"
        if block.first:
            sampler = Sampler(info.nbytes if packed else info.numel)
        if packed:
            sampler.add(block.start * info.type.bits // 8, block.words.astype(np.float32))
        else:
            sampler.add(block.start, block.values)
        if block.last:
            facts = {"name": info.name, "dtype": info.dtype, "shape": info.shape}
            yield info, draw_tensor(sampler.values, **facts, sampled=sampler.sampled), sampler.sampled
