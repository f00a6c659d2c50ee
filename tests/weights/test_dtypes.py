from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from hilm.errors import PackedFormatUnsupported
from hilm.weights.dtypes import DTYPES, PIECE, decode

REFERENCE = {
    "F16": np.dtype("<f2"),
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


def decoded(name: str, raw: bytes) -> np.ndarray:
    out = np.full(len(raw) * 8 // DTYPES[name].bits, 7, np.float32)
    decode(DTYPES[name], np.frombuffer(raw, np.uint8), out)
    return out


@pytest.mark.parametrize("name", REFERENCE)
def test_every_bit_pattern_equals_the_reference_conversion(name):
    bits = DTYPES[name].bits
    patterns = np.arange(2**bits, dtype=DTYPES[name].word)
    expected = patterns.view(REFERENCE[name]).astype(np.float32)
    found = decoded(name, patterns.tobytes())
    same_bits = found.view(np.uint32) == expected.view(np.uint32)
    assert (same_bits | (np.isnan(found) & np.isnan(expected))).all()


def test_half_precision_is_exact_without_infinities_too():
    patterns = np.arange(2**16, dtype="<u2")
    finite = patterns[np.isfinite(patterns.view("<f2"))]
    assert (decoded("F16", finite.tobytes()) == finite.view("<f2").astype(np.float32)).all()


def test_bf16_keeps_nan_payloads():
    payloads = np.array([0x7F81, 0xFFC1, 0x7FFF], "<u2")
    assert decoded("BF16", payloads.tobytes()).view(np.uint32).tolist() == [
        0x7F810000,
        0xFFC10000,
        0x7FFF0000,
    ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("I8", [-128, -1, 0, 127]),
        ("U8", [0, 255]),
        ("I16", [-32768, 32767]),
        ("U16", [65535]),
        ("I32", [-(2**31), 2**31 - 1, 16_777_217]),
        ("U32", [2**32 - 1]),
        ("I64", [-(2**63), 2**53 + 1]),
        ("U64", [2**64 - 1]),
        ("BOOL", [0, 1]),
        ("F64", [1e300, -1e300, 0.1, 5e-324, np.nan, np.inf]),
        ("F32", [1e-45, -0.0, np.inf]),
    ],
)
def test_numbers_are_rounded_as_ieee_says(name, values):
    letter = {"I": "i", "U": "u", "B": "u", "F": "f"}[name[0]]
    stored = np.array(values, f"<{letter}{DTYPES[name].bits // 8}")
    with np.errstate(over="ignore"):
        expected = stored.astype(np.float32)
    np.testing.assert_array_equal(decoded(name, stored.tobytes()), expected)


@pytest.mark.parametrize("name", ["BF16", "F16", "F8_E4M3", "I8"])
def test_pieces_join_without_seam(name):
    size = 2 * PIECE + 3
    raw = np.random.default_rng(1).integers(0, 100, size * DTYPES[name].bits // 8, np.uint8).tobytes()
    width = DTYPES[name].bits // 8
    whole = decoded(name, raw)
    parts = [decoded(name, raw[i : i + 1001 * width]) for i in range(0, len(raw), 1001 * width)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_odd_addresses_decode_too():
    raw = np.arange(101, dtype=np.uint8)[1:]
    out = np.empty(101, np.float32)[1:]
    decode(DTYPES["F8_E4M3"], raw, out)
    np.testing.assert_array_equal(out, decoded("F8_E4M3", raw.tobytes()))


def test_complex_numbers_are_pairs():
    values = np.array([1 + 2j, -3j], np.complex64)
    assert decoded("C64", values.tobytes()).tolist() == [1, 2, 0, -3]


@pytest.mark.parametrize("name", ["F4", "F6_E2M3", "F6_E3M2"])
def test_shared_bytes_are_refused_not_guessed(name):
    with pytest.raises(PackedFormatUnsupported, match=name):
        decoded(name, bytes(12))
