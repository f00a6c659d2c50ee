from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import ChecksumMismatch
from hilm.reel.tokens import ALPHABET, LIMIT, detokenize, tokenize
from tests.reel import reference_decoder as reference


def both_ways(values):
    symbols, raw = tokenize(values)
    assert int(symbols.max(initial=0)) < ALPHABET
    assert (detokenize(symbols, np.frombuffer(raw, np.uint8)) == values).all()
    return symbols, raw


def test_all_small_values():
    both_ways(np.arange(-(1 << 17), 1 << 17))


@pytest.mark.parametrize("power", range(32))
def test_neighbours_of_powers_of_two(power):
    near = (1 << power) + np.arange(-3, 4)
    both_ways(np.concatenate([near, -near]).clip(1 - LIMIT, LIMIT - 1))


def test_symbols_by_hand():
    values = np.array([0, 1, -1, 15, -15, 16, 19, 20, -16, LIMIT - 1, 1 - LIMIT])
    symbols, raw = both_ways(values)
    assert symbols.tolist() == [0, 1, 2, 29, 30, 31, 31, 33, 32, 253, 254]
    assert len(raw) == -(-(4 * 2 + 2 * 29) // 8)
    assert raw[0] == 0b00_00_11_00


@given(st.lists(st.integers(1 - LIMIT, LIMIT - 1)))
@settings(deadline=None)
def test_any_values_agree_with_the_reference(values):
    symbols, raw = both_ways(np.array(values, np.int64))
    assert reference.read_tokens(symbols.tolist(), raw) == values


def test_missing_or_extra_raw_bits_are_refused():
    symbols, raw = tokenize(np.array([1000, 7, -70_000]))
    for damaged in (raw[:-1], raw + b"\0", b""):
        with pytest.raises(ChecksumMismatch):
            detokenize(symbols, np.frombuffer(damaged, np.uint8))
