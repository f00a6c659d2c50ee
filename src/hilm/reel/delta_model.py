"""What to expect of the differences between a fine-tune and its base, as the head of a slab tells.

A context is the exponent of the base's value, which tells how many steps of its type a small change takes,
and how much its whole row has changed. The quietest rows of a float32 fine-tune were not trained, only
shrunk by weight decay: step by step, each rounded. What that does to a word depends on its mantissa, so a
table by the first 8 bits of it says what difference to expect in such rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from hilm.reel.kernel import kernel
from hilm.reel.scales import pack_vector, parse_vector
from hilm.reel.tokens import LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hilm.reel.plan import Words
    from hilm.reel.words import WordView

EXPONENTS: Final = 20
"""Classes of the base's exponent: values this many octaves below the largest share one."""

ACTIVITIES: Final = 10
"""Classes of a row by how much it has changed."""

DRIFTS: Final = 256
"""Classes of a mantissa."""

SENDS_ACTIVITY, SENDS_DRIFT = 4, 8  # flags of a slab head
_DRIFT_BITS = 8
_MIN_COLUMNS = 32  # a row's activity must be shared by at least as many words
_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True, eq=False)
class DeltaModel:
    """Contexts and expectations of one slab.

    Attributes:
        largest_exponent: Largest exponent field in the base; 0 of what are no floats.
        activity: int8 [R], class of every row, 0 the quietest; empty if not sent.
        drift: int64 [DRIFTS], difference to expect in rows of activity 0; empty if not sent.
    """

    largest_exponent: int = 0
    activity: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    drift: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def flags(self) -> int:
        """What is sent, as flags of a slab head."""
        return SENDS_ACTIVITY * bool(self.activity.size) | SENDS_DRIFT * bool(self.drift.size)

    def expect(self, base: Words, view: WordView, start: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Tell the context of each word and the difference to expect, given the base from ``start`` on."""
        ids, expected = np.zeros(base.size, np.uint8), np.zeros(base.size, np.int64)
        if view.kind == "float":
            lowest = self.largest_exponent - EXPONENTS + 1
            activity = self.activity if self.activity.size else np.zeros(view.rows, np.int8)
            _fill(base, view.mantissa, lowest, activity, self.drift, start, view.columns, ids, expected)
        return ids, expected


def count_contexts(view: WordView) -> int:
    """Frequency tables of a slab of differences."""
    return EXPONENTS * ACTIVITIES if view.kind == "float" else 1


def delta_flags(view: WordView) -> tuple[int, int]:
    """Flags that the head of a slab of differences has, and those it may have."""
    must = view.kind == "float" and view.rows > 1 and view.columns >= _MIN_COLUMNS
    return SENDS_ACTIVITY * must, SENDS_DRIFT * (_DRIFT_BITS <= view.mantissa < 32)


def pack_model(model: DeltaModel) -> bytes:
    """Write the vectors of a model."""
    vectors = model.activity, np.diff(model.drift, prepend=0)
    return b"".join(pack_vector(vector) for vector in vectors if vector.size)


def parse_model(data: bytes, at: int, view: WordView, flags: int, exponent: int) -> tuple[DeltaModel, int]:
    """Read what `pack_model` wrote; return it and the offset behind it.

    Raises:
        ChecksumMismatch: A vector is malformed.
    """
    activity, drift = np.zeros(0, np.int8), np.zeros(0, np.int64)
    if flags & SENDS_ACTIVITY:
        rows, at = parse_vector(data, at, view.rows, 0, ACTIVITIES - 1)
        activity = rows.astype(np.int8)
    if flags & SENDS_DRIFT:
        steps, at = parse_vector(data, at, DRIFTS, 1 - LIMIT, LIMIT - 1)
        drift = steps.cumsum()
    return DeltaModel(exponent, activity, drift), at


def drift_places(base: Words, view: WordView) -> NDArray[np.int64]:
    """Class of the mantissa of every word."""
    return (base >> base.dtype.type(view.mantissa - _DRIFT_BITS)).astype(np.int64) & (DRIFTS - 1)


@kernel
def _fill(
    base: Words,
    mantissa: int,
    lowest: int,
    activity: NDArray[np.int8],
    drift: NDArray[np.int64],
    start: int,
    columns: int,
    ids: NDArray[np.uint8],
    expected: NDArray[np.int64],
) -> None:
    row, left = start // columns, columns - start % columns
    mask = (_ONE << np.uint64(8 * base.itemsize - 1)) - _ONE
    for i in range(base.size):
        magnitude = np.int64(np.uint64(base[i]) & mask)
        exponent = int(magnitude >> mantissa) - lowest
        ids[i] = min(max(exponent, 0), EXPONENTS - 1) * ACTIVITIES + activity[row]
        if drift.size and activity[row] == 0:
            expected[i] = drift[magnitude >> (mantissa - _DRIFT_BITS) & (DRIFTS - 1)]
        left -= 1
        if left == 0:
            row, left = row + 1, columns
