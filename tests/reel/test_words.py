from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.reel.entropy import unpack_raw
from hilm.reel.layout import CHUNK_ELEMENTS
from hilm.reel.words import count_leading, join_floats, split_floats, word_view
from hilm.weights.dtypes import DTYPES, ELEMENTS
from tests.reel import reference_decoder as reference


@pytest.mark.parametrize(
    ("name", "kind", "bits"),
    [
        ("F64", "float", 13),
        ("F32", "float", 10),
        ("BF16", "float", 10),
        ("C64", "float", 10),
        ("F16", "float", 7),
        ("F8_E4M3", "float", 7),
        ("F8_E5M2", "float", 7),
        ("F8_E4M3FNUZ", "float", 7),
        ("F8_E5M2FNUZ", "float", 7),
    ],
)
def test_floats_code_their_exponent_and_two_bits(name, kind, bits):
    view = word_view(DTYPES[name], 3, 4)
    assert (view.kind, view.symbol_bits, view.size) == (kind, bits, 12)


def test_every_type_has_a_kind():
    kinds = {name: word_view(dtype, 1, 1).kind for name, dtype in DTYPES.items()}
    assert {n for n, k in kinds.items() if k == "token"} == {"I16", "I32", "I64", "U16", "U32", "U64"}
    bytes_ = {"I8", "U8", "BOOL", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"}
    assert {n for n, k in kinds.items() if k == "byte"} == bytes_ | (DTYPES.keys() - ELEMENTS.keys())


def test_chunks_tile_the_slab():
    view = word_view(DTYPES["F32"], 3, CHUNK_ELEMENTS)
    assert view.ranges() == [
        (0, CHUNK_ELEMENTS),
        (CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS),
        (2 * CHUNK_ELEMENTS, 3 * CHUNK_ELEMENTS),
    ]
    assert word_view(DTYPES["F32"], 1, CHUNK_ELEMENTS + 1).ranges()[-1] == (
        CHUNK_ELEMENTS,
        CHUNK_ELEMENTS + 1,
    )
    assert view.nbytes == 12 * CHUNK_ELEMENTS


@given(st.sampled_from([8, 16, 32, 64]), st.lists(st.integers(0, (1 << 64) - 1)), st.data())
@settings(deadline=None)
def test_splitting_is_a_permutation_of_bits(size, values, data):
    bits = data.draw(st.integers(1, min(8, size - 1)))
    words = np.array([value % (1 << size) for value in values], f"<u{size // 8}")
    symbols, raw = split_floats(words, bits, np.arange(1 << bits).astype(np.uint8))
    head = {"b": bits, "values": range(1 << bits)}
    assert reference.rotate_back(head, size, symbols.tolist(), raw) == words.tolist()
    joined = np.empty_like(words)
    buffer = unpack_raw(np.frombuffer(raw, np.uint8), (size - bits) * words.size)
    join_floats(symbols, np.arange(1 << bits, dtype=np.uint64), bits, buffer, joined)
    assert (joined == words).all()


@pytest.mark.parametrize("bits", [5, 7, 10, 13])
def test_counting_uses_the_bits_behind_the_sign(bits):
    words = np.arange(1 << 16).astype("<u2")
    ids = (words % 3).astype(np.uint8)
    counts = np.zeros((3, 1 << bits), np.int64)
    count_leading(words, ids, bits, counts)
    expected = np.zeros_like(counts)
    np.add.at(expected, (ids, (words & 0x7FFF) >> (15 - bits)), 1)
    assert (counts == expected).all()
