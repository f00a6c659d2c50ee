from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.lineage.signs import seed, signs, words

MASK = (1 << 64) - 1


def slow_word(start, index):
    z = (start + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hilm.lineage/sketch/1|M:64x64", 0xF5120F09E7C2D89F),
        ("hilm.lineage/bits/1", 0x914FCA9ADDBE64C2),
        ("hilm.lineage/gramfold/1", 0x81D5EAE3DC34ED8A),
    ],
)
def test_published_seeds(text, value):
    assert int(seed(text)) == value


def test_published_word_and_signs():
    start = seed("hilm.lineage/sketch/1|M:64x64")
    assert int(words(start, 0, 1)[0]) == 0x72E7A1DE38BEE52F
    assert signs(start, 8).tolist() == [-1, -1, -1, -1, 1, -1, 1, 1]


@given(st.integers(0, MASK), st.integers(0, 2**40), st.integers(0, 9))
def test_words_are_splitmix_at_any_index(start, first, count):
    assert words(np.uint64(start), first, count).tolist() == [
        slow_word(start, first + i) for i in range(count)
    ]


@given(st.integers(0, MASK), st.integers(0, 300))
def test_signs_are_the_bits_of_the_words(start, count):
    expected = [-1 if slow_word(start, i // 64) >> (i % 64) & 1 else 1 for i in range(count)]
    assert signs(np.uint64(start), count).tolist() == expected


def test_a_name_that_is_not_ascii_is_refused():
    with pytest.raises(UnicodeEncodeError):
        seed("größe")
