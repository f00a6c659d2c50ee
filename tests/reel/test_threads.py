from __future__ import annotations

import threading

import pytest

from hilm.reel.threads import in_threads


@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_order_and_errors_come_through(threads):
    assert in_threads(lambda n: 10 // n, [5, 2, 1], threads) == [2, 5, 10]
    assert in_threads(abs, [], threads) == []
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 10 // n, [5, 0, 1], threads)


def test_several_are_at_work_at_a_time():
    together = threading.Barrier(3, timeout=30)
    assert sorted(in_threads(lambda _: together.wait(), range(3), 3)) == [0, 1, 2]
