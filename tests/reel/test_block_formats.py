from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.reel.block_formats import FORMATS
from hilm.weights.gguf_blocks import TYPES_BY_NAME

GAUSSIAN = {
    "q4_k": 0.00514,
    "q5_k": 0.00131,
    "q6_k": 0.000314,
    "q8_0": 2.87e-5,
    "nf4": 0.00845,
    "int4": 0.0116,
}
LEVELS = {
    "q4_k": (32, 16),
    "q5_k": (32, 32),
    "q6_k": (16, 64),
    "q8_0": (32, 255),
    "nf4": (64, 16),
    "int4": (64, 15),
}


def gaussian(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count, np.float32)


def nmse(found, values):
    return np.square(found - values, dtype=np.float64).sum() / np.square(values, dtype=np.float64).sum()


@pytest.mark.parametrize("name", FORMATS)
def test_a_gaussian_is_rounded_as_well_as_the_format_can(name):
    values = gaussian(1 << 16)
    assert nmse(FORMATS[name].round(values), values) == pytest.approx(GAUSSIAN[name], rel=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_each_block_has_few_levels(name):
    block, levels = LEVELS[name]
    for part in FORMATS[name].round(gaussian(1 << 12)).reshape(-1, block):
        assert len(np.unique(part)) <= levels


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_and_powers_of_two_scale(name):
    zeros = np.zeros(300, np.float32)
    assert not FORMATS[name].round(zeros).any()
    values = gaussian(300)
    assert np.array_equal(FORMATS[name].round(values * 4), FORMATS[name].round(values) * 4)


@pytest.mark.parametrize("name", FORMATS)
@given(count=st.integers(1, 600))
def test_the_last_block_need_not_be_full(name, count):
    values = gaussian(count)
    found, whole = (FORMATS[name].round(v) for v in (values, gaussian(600)))
    assert found.shape == (count,)
    assert found.dtype == np.float32
    full = 0 if name == "nf4" else count // FORMATS[name].block * FORMATS[name].block  # scales share a mean
    assert np.array_equal(found[:full], whole[:full])


def test_q8_0_is_that_of_gguf():
    values = np.concatenate([gaussian(1 << 14), np.zeros(32, np.float32), np.full(32, 1e-9, np.float32)])
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    assert np.array_equal(FORMATS["q8_0"].round(values), expected)


@pytest.mark.parametrize("name", ["q4_k", "q5_k", "q6_k"])
def test_what_a_gguf_file_holds_is_hardly_rounded_again(name):
    kind = gguf.GGMLQuantizationType[name.upper()]
    random = np.random.default_rng(1)
    stored = random.integers(0, 256, (200, TYPES_BY_NAME[name.upper()].nbytes), np.uint8)
    unit = np.float16(0.01).tobytes()
    if name == "q6_k":
        stored[:, -2:] = list(unit)
    else:
        stored[:, :4] = list(unit + unit)
    values = gguf.quants.dequantize(stored, kind).ravel()
    assert nmse(FORMATS[name].round(values), values) < GAUSSIAN[name] / 3


@pytest.mark.parametrize("name", FORMATS)
def test_the_price_is_that_of_the_stored_blocks(name):
    if name.upper() in TYPES_BY_NAME:
        stored = TYPES_BY_NAME[name.upper()]
        assert FORMATS[name].bits * FORMATS[name].block == 8 * stored.nbytes
    else:
        assert FORMATS[name].bits == pytest.approx({"nf4": 4.127, "int4": 4.25}[name], abs=1e-4)
