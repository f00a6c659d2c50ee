"""How much memory a run takes, estimated before a model is loaded, and the refusal of what does not fit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from hilm.errors import UsageError
from hilm.extras import require
from hilm.weights import open_checkpoint
from hilm.weights.memory import MIB, group_limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hilm.parity.inputs import Item

FREE_SHARE = 0.8
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def estimate(
    paths: Sequence[str],
    config: dict[str, Any],
    items: Sequence[Item],
    dtype: str | None = None,
    limit_mb: float | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Estimate the peak of running one model after the other, and refuse what does not fit.

    Weights are counted as stored or as run, whichever is more; a token takes ``s (12 D + 2 M)`` while a block
    runs, its hidden states or what is compared of them, and its pixels twice.

    Args:
        paths: Checkpoints of the models.
        config: Of one of them: ``hidden_size`` D, ``intermediate_size`` M, ``num_hidden_layers``.
        items: Inputs.
        dtype: Number format of the run, with all hidden states kept; None for a comparison stage by stage,
            which runs what is stored in 16 bits in float32, and small cuts and all else in float64.
        limit_mb: MiB; 80 % of what is free when None.
        device: Whose memory it is.

    Raises:
        UsageError: It does not fit; the message has the numbers, the hint what would fit.
    """
    weights, stored = 0.0, "bfloat16"
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            largest = max(checkpoint.tensors.values(), key=lambda info: info.nbytes)
            wide = {"F64": "float64", "F32": "float32"}.get(largest.dtype, "bfloat16")
            stored = max(stored, wide, key=BYTES.__getitem__)
            run = BYTES[dtype] if dtype else 8
            weights = max(weights, checkpoint.total_parameters * max(run, BYTES[wide]) / MIB)
    size = BYTES[dtype] if dtype else 4 if BYTES[stored] == 2 else 8
    width, inner = config.get("hidden_size", 0), config.get("intermediate_size", 0)
    kept = config.get("num_hidden_layers", 0) + 1 if dtype else 8  # taps on both sides, and aligned copies
    biggest = max(items, key=lambda item: item.tokens)
    pixels = 8 * 3 * biggest.patch**2 if biggest.frames is not None else 0
    per_token = (size * ((12 + kept) * width + 2 * inner) + pixels) / MIB
    needed = weights + biggest.tokens * per_token
    limit = limit_mb or FREE_SHARE * free_mb(device)
    if needed > limit:
        frames = biggest.grid[0]
        room = int((limit - weights) / max(per_token * biggest.tokens / max(frames, 1), 1e-9))
        raise UsageError(
            f"{biggest.name} needs about {needed:,.0f} MiB, the limit is {limit:,.0f} MiB",
            hint=f"--num_frames {room}" if 0 < room < frames else "give smaller inputs or more memory",
        )
    return {"weights_mb": weights, "peak_mb": needed, "limit_mb": limit, "tokens": biggest.tokens}


def free_mb(device: str) -> float:
    """Memory of a device that nobody uses, MiB."""
    if device.startswith("cuda"):
        return float(require("torch").cuda.mem_get_info(device)[0] / MIB)
    return min(psutil.virtual_memory().available / MIB, group_limit())


@contextmanager
def refusing(expected: dict[str, float] | None) -> Iterator[None]:
    """Turn running out of memory all the same into an error with the estimate.

    Raises:
        UsageError: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        about = f"; {expected['peak_mb']:,.0f} MiB were expected" if expected else ""
        raise UsageError(f"memory ran out{about}", hint="fewer --num_frames or smaller inputs") from error
