from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

from hilm.errors import PackedFormatUnsupported
from hilm.weights.dtypes import DTYPES, decode
from hilm.weights.gguf_blocks import BLOCK_TYPES, TYPES_BY_NAME, UNDECODABLE

PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
LIBRARY = sorted(set(TYPES_BY_NAME) - UNDECODABLE - set(PLAIN))


def random_blocks(name, count, seed=0):
    """Random bytes whose values are finite, and these values by the library."""
    kind = TYPES_BY_NAME[name]
    raw = np.random.default_rng(seed).integers(0, 256, (3 * count + 99, kind.nbytes), np.uint8)
    with np.errstate(all="ignore"):
        values = quants.dequantize(raw, GGMLQuantizationType[name])
    finite = np.isfinite(values).all(1)
    assert finite.sum() >= count
    return raw[finite][:count].reshape(-1), values[finite][:count].reshape(-1)


def decoded(name, raw):
    kind = TYPES_BY_NAME[name]
    out = np.full(len(raw) // kind.nbytes * kind.values, np.nan, np.float32)
    decode(DTYPES[name], raw, out)
    return out


def test_the_table_of_types_is_the_library_s():
    assert {(t.name, number): (t.values, t.nbytes) for number, t in BLOCK_TYPES.items()} == {
        (kind.name, int(kind)): sizes for kind, sizes in GGML_QUANT_SIZES.items()
    }


@pytest.mark.parametrize("name", LIBRARY)
def test_blocks_decode_as_the_library_decodes_them(name):
    """Bit for bit, over several groups and a remainder."""
    kind = TYPES_BY_NAME[name]
    raw, values = random_blocks(name, 2 * 65_536 // kind.values + 3)
    assert np.array_equal(decoded(name, raw).view(np.uint32), values.view(np.uint32))


QUANTISED = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")


@pytest.mark.parametrize("name", QUANTISED)
def test_what_the_library_quantises_comes_back_as_it_reads_it(name):
    weights = np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)
    raw = quants.quantize(weights, GGMLQuantizationType[name])
    expected = quants.dequantize(raw, GGMLQuantizationType[name])
    values = decoded(name, np.ascontiguousarray(raw).view(np.uint8).reshape(-1))
    assert np.array_equal(values, expected.reshape(-1))
    assert np.corrcoef(values, weights.reshape(-1))[0, 1] > 0.6  # three values are enough for that


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers_decode_as_numpy_converts_them(name):
    raw = np.random.default_rng(2).integers(0, 256, 80_000, np.uint8)
    with np.errstate(all="ignore"):
        expected = raw.view(PLAIN[name]).astype(np.float32)
    assert np.array_equal(decoded(name, raw), expected, equal_nan=True)


def test_a_scale_that_is_no_number_warns_nobody():
    raw = np.full(34 * 4, 0xFF, np.uint8)
    assert np.isnan(decoded("Q8_0", raw)).all()
    assert np.isnan(decoded("Q5_1", np.full(24, 0xFF, np.uint8))).all()


@pytest.mark.parametrize("name", sorted(UNDECODABLE))
def test_types_nobody_decodes_are_refused_by_name(name):
    kind = DTYPES[name]
    assert not kind.is_weight
    with pytest.raises(PackedFormatUnsupported, match=name):
        decode(kind, np.zeros(kind.block_bytes, np.uint8), np.empty(kind.block, np.float32))
    with pytest.raises(KeyError):
        quants._type_traits[GGMLQuantizationType[name]]
