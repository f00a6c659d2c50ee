from __future__ import annotations

import pytest

from hilm.weights.pickle_records import Call, Global, Table


@pytest.mark.parametrize("make", [lambda: Global("os.system"), lambda: Call(Global("f"), ()), Table])
def test_records_are_equal_to_nothing_but_themselves(make):
    record = make()
    assert record == record  # noqa: PLR0124 - that is the question
    assert record != make()
    assert len({record, make()}) == 2


def test_depth_and_cycles_cost_no_stack():
    """Comparing or hashing by value would recurse to the bottom."""
    calls = [Global("f")] * 2
    for _ in range(100_000):
        calls = [Call(call, ()) for call in calls]
    table = Table()
    table.pairs.append((table, table))
    assert calls[0] != calls[1]
    assert table != Table([(table, table)])
    assert len({*calls, table}) == 3
