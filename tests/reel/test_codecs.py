from __future__ import annotations

import sys

import numpy as np
import pytest

from hilm.reel.codecs import XOR, compress_planes, find_codecs
from hilm.weights.dtypes import DTYPES

WORDS = np.random.default_rng(0).standard_normal(1 << 14, np.float32).view(np.uint8)
F32 = DTYPES["F32"]


def test_every_codec_makes_weights_smaller_and_leaves_them_alone():
    found, missing = find_codecs(delta=True)
    assert not missing
    before = WORDS.copy()
    sizes = {name: codec(WORDS, F32, None) for name, codec in found.items()}
    assert list(sizes) == ["zstd-3", "zstd-19", "zipnn", XOR]
    assert all(0.5 * len(WORDS) < size < len(WORDS) for size in sizes.values())
    assert np.array_equal(WORDS, before)
    assert XOR not in find_codecs(delta=False)[0]


def test_what_a_base_has_too_costs_next_to_nothing():
    tuned = WORDS.copy()
    tuned[4000] ^= 1
    assert compress_planes(tuned, F32, WORDS) < 200 < compress_planes(tuned, F32, None)


def test_zipnn_leaves_types_it_does_not_know():
    codec = find_codecs(delta=False)[0]["zipnn"]
    assert codec(WORDS, DTYPES["I64"], None) == len(WORDS)


@pytest.mark.parametrize(("package", "left"), [("zipnn", ["zstd-3", "zstd-19"]), ("zstandard", ["zipnn"])])
def test_a_codec_that_is_not_installed_is_named(monkeypatch, package, left):
    monkeypatch.setitem(sys.modules, package, None)
    found, missing = find_codecs(delta=False)
    assert list(found) == left
    assert set(missing.values()) == {f"pip install {package}"}
