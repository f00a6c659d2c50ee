from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import ChecksumMismatch
from hilm.reel.entropy import (
    decode_stream,
    decoder_entries,
    encode_stream,
    encoder_steps,
    pack_raw,
    unpack_raw,
)
from hilm.reel.tables import frequencies, table_codes
from tests.reel import reference_decoder as reference


def tables_for(symbols, ids, tables):
    counts = np.zeros((tables, 256), np.int64)
    np.add.at(counts, (ids, symbols), 1)
    return frequencies(table_codes(counts))


def roundtrip(symbols, ids, tables):
    table = tables_for(symbols, ids, tables)
    data = encode_stream(symbols, ids, encoder_steps(table), b"raw")
    decoded, raw = decode_stream(data, ids, decoder_entries(table))
    assert (decoded == symbols).all()
    assert raw.tobytes() == b"raw"
    return data, table


def draw(seed, size, tables=3, alphabet=256):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, tables, size).astype(np.uint8)
    return (rng.geometric(min(1.0, 1.5 / alphabet**0.7), size).clip(1, alphabet) - 1).astype(np.uint8), ids


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 1000])
@pytest.mark.parametrize("alphabet", [1, 2, 255, 256])
def test_every_length_and_alphabet_comes_back(size, alphabet):
    roundtrip(*draw(size, size, alphabet=alphabet), 3)


@given(pairs=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 15))), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_any_symbols_in_any_contexts_come_back_and_agree_with_the_reference(pairs, seed):
    symbols = np.array([symbol for symbol, _ in pairs], np.uint8)
    ids = np.array([table for _, table in pairs], np.uint8)
    data, table = roundtrip(symbols, ids, 16)
    slow = [reference.slots(dict(enumerate(row.tolist()))) if row.any() else None for row in table]
    assert reference.read_stream(data, ids.tolist(), slow) == (symbols.tolist(), b"raw")


def test_a_frequency_of_4096_costs_no_words():
    data, _ = roundtrip(np.zeros(100_000, np.uint8), np.zeros(100_000, np.uint8), 1)
    assert len(data) == 36 + 3


@pytest.mark.parametrize("alphabet", [2, 40, 256])
def test_length_is_that_of_an_ideal_coder(alphabet):
    symbols, ids = draw(5, 65_536, alphabet=alphabet)
    data, table = roundtrip(symbols, ids, 3)
    ideal = -np.log2(table[ids, symbols] / 4096).sum() / 8
    assert ideal <= len(data) <= 1.005 * ideal + 39


def test_division_by_multiplication_is_exact_at_the_edges():
    for frequency in [1, 2, 3, 5, 7, 1023, 2047, 2048, 2049, 4093, 4094, 4095, 4096]:
        reciprocal = int(encoder_steps(np.array([[frequency, 4096 - frequency]]))[0, 0])
        multiples = np.arange(max(1, (1 << 20) - 5000), 1 << 20).tolist()
        for x in [y * frequency + d for y in [1, 2, *multiples] for d in (-1, 0)]:
            assert x * reciprocal < 1 << 64
            assert x * reciprocal >> 44 == x // frequency


def test_decoder_entries_are_symbol_frequency_and_offset():
    entries = decoder_entries(np.array([[0, 1, 4095], [4096, 0, 0]]))
    assert entries[0] == 1
    assert entries[1] == 2 | 4094 << 8
    assert entries[4095] == 2 | 4094 << 8 | 4094 << 20
    assert entries[8191] == 4095 << 8 | 4095 << 20


def test_every_cut_stream_is_refused():
    symbols, ids = draw(1, 50)
    table = tables_for(symbols, ids, 3)
    data = encode_stream(symbols, ids, encoder_steps(table), b"")
    for size in range(len(data)):
        with pytest.raises(ChecksumMismatch):
            decode_stream(data[:size], ids, decoder_entries(table))


def test_a_stream_with_a_changed_state_or_word_count_is_refused():
    symbols, ids = draw(2, 5000)
    table = tables_for(symbols, ids, 3)
    data = encode_stream(symbols, ids, encoder_steps(table), bytes(8))
    count = int.from_bytes(data[32:36], "little")
    for damaged in (
        data[:32] + (count + 1).to_bytes(4, "little") + data[36:],
        data[:32] + (count - 1).to_bytes(4, "little") + data[36:],
        data[:32] + b"\xff\xff\xff\xff" + data[36:],
        b"\x00" * 32 + data[32:],
        b"\xff" * 32 + data[32:],
        data[:4] + data[:4] + data[8:],
    ):
        with pytest.raises(ChecksumMismatch):
            decode_stream(damaged, ids, decoder_entries(table))


@given(data=st.binary(max_size=200), size=st.integers(0, 100))
@settings(deadline=None)
def test_arbitrary_bytes_never_crash(data, size):
    entries = decoder_entries(np.array([[1, 95, 4000], [0, 4096, 0]]))
    ids = (np.arange(size) % 2).astype(np.uint8)
    try:
        symbols, raw = decode_stream(data, ids, entries)
    except ChecksumMismatch:
        return
    assert symbols.size == size
    assert raw.size <= len(data)


def test_raw_bits_must_fill_their_bytes_exactly():
    buffer = np.array([0b101, 0], np.uint64)
    assert pack_raw(buffer, 3) == b"\x05"
    assert pack_raw(buffer, 0) == b""
    assert unpack_raw(np.array([5], np.uint8), 3)[0] == 5
    for raw, bits in [([5], 2), ([5], 9), ([5, 0], 3), ([], 3), ([8], 3)]:
        with pytest.raises(ChecksumMismatch):
            unpack_raw(np.array(raw, np.uint8), bits)


def test_golden_stream():
    symbols = np.array([0, 1, 2, 1, 1, 0, 2, 2, 1, 1, 1, 0], np.uint8)
    ids = np.array([0, 1] * 6, np.uint8)
    table = np.array([[1000, 3000, 96], [1, 4000, 95]])
    data = encode_stream(symbols, ids, encoder_steps(table), b"\x2a")
    assert data.hex() == GOLDEN


GOLDEN = "28920500020c0100f04f3a00814d6210d05d010000000010e0af2a00f21f2b00000000002a"
