from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import UsageError
from hilm.reel.curve import MAX_ORDER, cells, d2xy, order_for, steps

ORDERS = range(MAX_ORDER + 1)


def slow_d2xy(order: int, distance: int) -> tuple[int, int]:
    """The iterative definition, one point at a time."""
    x = y = 0
    side = 1
    while side < 1 << order:
        right = distance >> 1 & 1
        up = (distance ^ right) & 1
        if not up:
            if right:
                x, y = side - 1 - x, side - 1 - y
            x, y = y, x
        x, y = x + side * right, y + side * up
        distance >>= 2
        side <<= 1
    return x, y


def test_order_one_is_the_documented_walk():
    x, y = d2xy(1)
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 0)]


@pytest.mark.parametrize("order", range(6))
def test_matches_the_iterative_definition(order: int):
    x, y = d2xy(order)
    assert [slow_d2xy(order, d) for d in range(4**order)] == list(zip(x.tolist(), y.tolist(), strict=True))


def test_matches_the_iterative_definition_at_spot_checks_of_the_largest_order():
    x, y = d2xy(MAX_ORDER)
    for distance in np.random.default_rng(0).integers(4**MAX_ORDER, size=200).tolist():
        assert slow_d2xy(MAX_ORDER, distance) == (x[distance], y[distance])


@pytest.mark.parametrize("order", ORDERS)
def test_visits_every_cell_once_in_unit_steps(order: int):
    x, y = d2xy(order)
    assert np.all(np.abs(np.diff(x)) + np.abs(np.diff(y)) == 1)
    assert np.all(np.bincount(cells(order), minlength=4**order) == 1)


@pytest.mark.parametrize("order", ORDERS)
def test_steps_invert_cells(order: int):
    np.testing.assert_array_equal(steps(order)[cells(order)], np.arange(4**order))


def test_tables_are_shared_and_cannot_be_changed():
    assert cells(3) is cells(3)
    with pytest.raises(ValueError, match="read-only"):
        cells(3)[0] = 1


@pytest.mark.parametrize(
    ("count", "order"), [(0, 0), (1, 0), (2, 1), (4, 1), (5, 2), (16, 2), (17, 3), (262144, 9), (262145, 10)]
)
def test_order_for_is_the_smallest_that_holds_the_count(count: int, order: int):
    assert order_for(count) == order


@pytest.mark.parametrize("order", [-1, MAX_ORDER + 1])
def test_other_orders_are_refused(order: int):
    with pytest.raises(UsageError, match="order"):
        cells(order)
