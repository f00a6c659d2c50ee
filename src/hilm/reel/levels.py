"""What an index comes back as: 256ths of a step, shifted towards where the weights of its cell lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hilm.reel.kernel import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = 256
"""Parts of a step that are told apart."""


@kernel
def level(magnitude: np.int64, factor: int, q: np.int64, bias: NDArray[np.int8]) -> np.int64:
    """Value of an index of this magnitude, in 256ths of a step.

    Args:
        magnitude: Of the index.
        factor: Steps from one index to the next: 2 on a trellis, else 1.
        q: The quantiser; 0 without a trellis.
        bias: int8 [2, 3], shift of the magnitudes 1, 2 and above by quantiser.
    """
    if magnitude == 0:
        return np.int64(0)
    cell = magnitude - 1 if magnitude < 3 else np.int64(2)
    return 256 * (factor * magnitude - q) + np.int64(bias[q, cell])


@kernel
def reconstruct(
    indices: NDArray[np.signedinteger],
    ids: NDArray[np.uint8],
    factor: int,
    bias: NDArray[np.int8],
    step: float,
    out: NDArray[np.float32],
) -> None:
    """Fill ``out`` [n] with weights: one product of float64, rounded to float32.

    Args:
        indices: [n].
        ids: [n] tables; on a trellis the lowest bit is the quantiser.
        factor: As of `level`.
        bias: As of `level`.
        step: A 256th of the step, in weight units.
        out: Written in full.
    """
    for i in range(indices.size):
        k = np.int64(indices[i])
        value = level(abs(k), factor, np.int64(ids[i]) & (factor - 1), bias)
        out[i] = np.float64(value if k > 0 else -value) * step


@kernel
def lean(
    values: NDArray[np.float64],
    indices: NDArray[np.int32],
    ids: NDArray[np.uint8],
    factor: int,
) -> NDArray[np.float64]:
    """Sum up how far weights lie beyond their value, away from zero, in steps.

    Returns:
        [2, 3, 2]: the sum and the number of weights of every cell that has a shift.
    """
    sums = np.zeros((2, 3, 2))
    for i in range(indices.size):
        k = np.int64(indices[i])
        if k != 0:
            q = np.int64(ids[i]) & (factor - 1)
            cell = sums[q, abs(k) - 1 if abs(k) < 3 else 2]
            cell[0] += (values[i] if k > 0 else -values[i]) - (factor * abs(k) - q)
            cell[1] += 1.0
    return sums
