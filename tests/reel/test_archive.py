from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import ChecksumMismatch
from hilm.reel.archive import symbol_decoder, symbol_encoder
from hilm.reel.head import Coder
from hilm.reel.words import word_view
from hilm.weights.dtypes import DTYPES

FLOATS = ["F64", "F32", "F16", "BF16", "C64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]


def coded(words, name, rows, columns):
    """Head and chunks of a slab that is coded as symbols, or None."""
    view = word_view(DTYPES[name], rows, columns)
    plan = symbol_encoder(words.view(view.word), view)
    return plan and (plan[0], [plan[1](*span) for span in view.ranges()])


def comes_back(words, name, rows, columns):
    head, chunks = coded(words, name, rows, columns)
    out = np.empty(head.view.size, head.view.word)
    for chunk, (start, stop) in zip(chunks, head.view.ranges(), strict=True):
        symbol_decoder(head)(chunk, start, out[start:stop])
    return out.tobytes() == words.tobytes()


def limits(name):
    bits = DTYPES[name].bits
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if name[0] == "I" else (0, (1 << bits) - 1)


@given(st.sampled_from(["I16", "I32", "I64", "U16", "U32", "U64"]), st.data())
@settings(deadline=None)
def test_integers_below_two_to_the_32_are_coded_and_others_are_not(name, data):
    low, high = limits(name)
    edges = st.sampled_from([1 << 15, 1 << 31, (1 << 32) - 1, 1 - (1 << 32), 1 << 32, -(1 << 32), low, high])
    value = st.one_of(st.integers(-20, 20), st.integers(low, high), edges).map(
        lambda v: min(max(v, low), high)
    )
    values = data.draw(st.lists(value, min_size=1, max_size=100))
    words = np.array(values, f"<{name[0].lower()}{DTYPES[name].bits // 8}")
    if max(map(abs, values)) < 1 << 32:
        assert comes_back(words, name, 1, len(values))
    else:
        assert coded(words, name, 1, len(values)) is None


@pytest.mark.parametrize("name", FLOATS)
def test_special_values_and_an_outlier_come_back(name):
    word = DTYPES[name].word
    rng = np.random.default_rng(1)
    words = rng.integers(0, 1 << min(8 * word.itemsize, 63), 100 * 100).astype(word) >> word.type(1)
    top, full = 1 << 8 * word.itemsize - 1, (1 << 8 * word.itemsize) - 1
    words[:8] = [0, top, full, top - 1, 1, top | 1, full - 1, top + 2]
    assert comes_back(words, name, 100, 100)


def test_nan_payloads_and_subnormals_of_float32():
    words = np.arange(0x7F80_0000 - 5000, 0x7F80_0000 + 5000, dtype="<u4")
    words[::2] |= np.uint32(1 << 31)
    words[::5] &= np.uint32(0x8000_03FF)
    assert comes_back(words, "F32", 100, 100)


def test_alphabets_of_more_than_256_give_up_bits():
    words = np.arange(1 << 16).astype("<u2")
    head, _ = coded(words, "BF16", 256, 256)
    assert (head.bits, head.values.tolist()) == (8, list(range(256)))
    narrow = (words & 0x3FFF) | 0x2000  # half of the patterns of ten bits
    assert coded(narrow, "BF16", 256, 256)[0].bits == 10
    assert coded(words, "F16", 256, 256)[0].bits == 7


def test_symbols_of_bytes_and_tokens_are_their_own_alphabet():
    head, _ = coded(np.array([3, 200, 3, 0], "u1"), "U8", 1, 4)
    assert (head.bits, head.values.size, head.codes.shape) == (0, 0, (1, 201))
    head, _ = coded(np.array([-1, 5, 0], "<i2"), "I16", 1, 3)
    assert (head.bits, head.values.size, head.codes.shape) == (0, 0, (1, 10))


def test_a_token_beyond_its_type_is_refused():
    head, (chunk,) = coded(np.array([70_000, 1, 2], "<i4"), "I32", 1, 3)
    for name in ("I16", "U16"):
        other = type(head)(Coder.SYMBOLS, word_view(DTYPES[name], 1, 3), codes=head.codes)
        with pytest.raises(ChecksumMismatch, match="beyond"):
            symbol_decoder(other)(chunk, 0, np.empty(3, "<u2"))


def test_raw_bits_behind_bytes_are_refused():
    head, (chunk,) = coded(np.array([3, 200, 3, 0], "u1"), "U8", 1, 4)
    with pytest.raises(ChecksumMismatch):
        symbol_decoder(head)(chunk + b"x", 0, np.empty(4, "u1"))


@pytest.mark.parametrize("name", ["BF16", "I64", "U8"])
def test_arbitrary_chunks_are_refused(name):
    rng = np.random.default_rng(2)
    words = (np.arange(2000) // 3).astype("<i8").view(DTYPES[name].word)
    head, _ = coded(words, name, 1, words.size)
    for size in rng.integers(0, 3000, 300).tolist():
        lanes = rng.integers(1 << 16, 1 << 32, 8, np.uint64).astype("<u4").tobytes()
        chunk = lanes + (size // 4).to_bytes(4, "little") + rng.bytes(size)
        with pytest.raises(ChecksumMismatch):
            symbol_decoder(head)(chunk, 0, np.empty(words.size, words.dtype))
