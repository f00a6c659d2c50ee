"""The Hilbert curve: a walk over a 2^k x 2^k grid whose consecutive steps are neighbouring cells."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ORDER = 11


def order_for(count: int) -> int:
    """Return the smallest order whose curve has at least ``count`` cells (0 for none or one)."""
    return (max(count - 1, 0).bit_length() + 1) // 2


def d2xy(order: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return where the curve is after each step: columns x and rows y, both ``[4**order]``.

    The curve starts at (0, 0); order 1 visits (0, 0), (0, 1), (1, 1), (1, 0). Each order is four copies of
    the one before: transposed, below, diagonally across, and mirrored at the other diagonal.

    Raises:
        UsageError: The order is not between 0 and 11.
    """
    if not 0 <= order <= MAX_ORDER:
        raise UsageError(f"Hilbert curve of order {order}", hint=f"orders 0 to {MAX_ORDER} exist")
    x = y = np.zeros(1, np.int32)
    for level in range(order):
        half = 1 << level
        x, y = (
            np.concatenate([y, x, x + half, 2 * half - 1 - y]),
            np.concatenate([x, y + half, y + half, half - 1 - x]),
        )
    return x, y


@cache
def cells(order: int) -> NDArray[np.int32]:
    """Return the row-major cell number of each step of the curve, ``[4**order]``, computed once per order.

    The array is shared and read-only. Errors as :func:`d2xy`.
    """
    x, y = d2xy(order)
    return _frozen((y << order) + x)


@cache
def steps(order: int) -> NDArray[np.int32]:
    """Return the inverse of :func:`cells`: the step at which the curve visits each row-major cell."""
    return _frozen(np.argsort(cells(order)).astype(np.int32))


def _frozen(array: NDArray[np.int32]) -> NDArray[np.int32]:
    array.flags.writeable = False
    return array
