from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hilm.errors import ChecksumMismatch
from hilm.reel.tables import TOTAL, frequencies, pack_tables, parse_tables, table_codes
from tests.reel import reference_decoder as reference

COUNTS = arrays(
    np.int64,
    array_shapes(min_dims=2, max_dims=2, max_side=20),
    elements=st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 1 << 24)),
)


@given(COUNTS)
@settings(deadline=None)
def test_tables_come_back_and_sum_to_4096(counts):
    codes = table_codes(counts)
    assert ((codes > 0) == (counts > 0)).all()
    assert (parse_tables(pack_tables(codes), *codes.shape) == codes).all()
    table = frequencies(codes)
    assert ((table > 0) == (counts > 0)).all()
    assert (table.sum(axis=1) == np.where(counts.any(axis=1), TOTAL, 0)).all()


@given(COUNTS)
@settings(deadline=None)
def test_the_reference_reads_the_same_frequencies(counts):
    codes = table_codes(counts)
    bits = reference.Bits(pack_tables(codes))
    for row in frequencies(codes).tolist():
        read = reference.read_table(bits, len(row)) or {}
        assert [read.get(symbol, 0) for symbol in range(len(row))] == row
    bits.finish()


@pytest.mark.parametrize(
    "counts",
    [
        [1],
        [1 << 24],
        [1 << 24, 1],
        [1] * 256,
        [1 << 24] + [1] * 255,
        [1] * 255 + [1 << 24],
        [0] * 255 + [3],
        [5] + [0] * 254 + [5],
    ],
)
def test_extreme_tables(counts):
    codes = table_codes(np.array([counts]))
    assert (parse_tables(pack_tables(codes), 1, len(counts)) == codes).all()
    table = frequencies(codes)[0]
    assert table.sum() == TOTAL
    assert ((table > 0) == (np.array(counts) > 0)).all()


def test_codes_are_eighths_of_an_octave():
    codes = table_codes(np.array([[4096, 0], [1, 1], [1, 4095], [0, 0]]))
    assert codes.tolist() == [[97, 0], [89, 89], [1, 97], [0, 0]]


def test_what_rounding_leaves_over_goes_to_the_first_of_the_largest():
    assert frequencies(np.array([[50, 50, 50]])).tolist() == [[1366, 1365, 1365]]


def test_an_empty_table_is_one_bit():
    assert pack_tables(np.zeros((200, 9), np.int64)) == bytes(25)


@given(st.binary(max_size=60), st.integers(1, 4), st.integers(1, 256))
@settings(deadline=None)
def test_arbitrary_bytes_are_read_or_refused(data, tables, alphabet):
    try:
        codes = parse_tables(data, tables, alphabet)
    except ChecksumMismatch:
        return
    table = frequencies(codes)
    assert (table.sum(axis=1) == np.where(codes.any(axis=1), TOTAL, 0)).all()


def test_symbols_beyond_the_alphabet_and_extra_bytes_are_refused():
    codes = table_codes(np.array([[3, 0, 5, 1]]))
    data = pack_tables(codes)
    for damaged, tables, alphabet in (
        (data, 1, 3),
        (data + b"\0", 1, 4),
        (data[:-1], 1, 4),
        (data, 9, 4),
        (b"", 1, 4),
    ):
        with pytest.raises(ChecksumMismatch):
            parse_tables(damaged, tables, alphabet)


def test_golden_tables():
    counts = np.array([[0, 1, 10, 100, 1000, 100, 10, 1], [0] * 8, [7, 0, 0, 0, 0, 0, 0, 9]])
    assert pack_tables(table_codes(counts)).hex() == GOLDEN


GOLDEN = "c56dd84eb7d7e7b511d5812d0882200029"
