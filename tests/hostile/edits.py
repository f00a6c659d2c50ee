"""A few edits of a file at random places, for property tests of parsers."""

from __future__ import annotations

from hypothesis import strategies as st


def edits(reach=400):
    """Up to four edits: a place, what to do there, and a byte."""
    actions = st.sampled_from(["set", "insert", "delete", "cut"])
    return st.lists(st.tuples(st.integers(0, reach), actions, st.integers(0, 255)), max_size=4)


def mutate(seed, changes) -> bytearray:
    """Apply edits to bytes."""
    data = bytearray(seed)
    for place, action, value in changes:
        at = place % (len(data) + 1)
        if action == "cut":
            del data[at:]
        elif action == "delete":
            del data[at : at + 1]
        else:
            data[at : at + (action == "set")] = bytes([value])
    return data
