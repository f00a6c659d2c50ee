"""How far weights that were rounded lie from what they were."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hilm.reel.kernel import kernel
from hilm.reel.words import as_floats, word_view

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from hilm.reel.schema import Error, Tensor
    from hilm.reel.words import Floats
    from hilm.weights.dtypes import DType


class Distortion:
    """An accumulator over the weights of one tensor; values are added in order, so parts do not matter."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)

    def add(self, found: NDArray[np.uint8], truth: NDArray[np.uint8], dtype: DType) -> None:
        """Take stored bytes of further weights, and what they were."""
        view = word_view(dtype, 1, truth.nbytes // dtype.word.itemsize)
        after, before = (
            as_floats(np.require(part.view(view.word), requirements="A"), view) for part in (found, truth)
        )
        _add(after, before, self._sums)

    @property
    def noise(self) -> float:
        """Sum of squared differences."""
        return float(self._sums[0])

    @property
    def power(self) -> float:
        """Sum of squared weights."""
        return float(self._sums[1])

    @property
    def error(self) -> Error:
        """What a manifest records: normalised mean squared error, largest difference, cosine."""
        noise, power, kept, product, largest = self._sums.tolist()
        return {
            "nmse": noise / power,
            "max_abs": largest,
            "cosine": product / math.sqrt(power * kept) if kept else 0.0,
        }


def mean_error(tensors: Iterable[Tensor]) -> float | None:
    """Mean NMSE of the rounded tensors, by their number of weights; None if there are none."""
    rounded = [
        (math.prod(t["shape"]), t["error"]["nmse"])
        for t in tensors
        if "error" in t and t.get("alias_of") is None
    ]
    total = sum(count for count, _ in rounded)
    return sum(count * nmse for count, nmse in rounded) / total if total else None


@kernel
def _add(found: Floats, truth: Floats, sums: NDArray[np.float64]) -> None:
    noise, power, kept, product, largest = sums
    for i in range(truth.size):
        a, b = np.float64(found[i]), np.float64(truth[i])
        noise += (a - b) * (a - b)
        power += b * b
        kept += a * a
        product += a * b
        largest = max(largest, abs(a - b))
    sums[:] = noise, power, kept, product, largest
