from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import ChecksumMismatch, UnsupportedVersion, VerificationError
from hilm.reel.head import Coder, pack_head, parse_head
from hilm.reel.quantizer import Quantizer
from hilm.reel.slab import decode_slab, encode_slab
from hilm.reel.words import as_floats, as_words, word_view
from hilm.weights.dtypes import DTYPES
from tests.reel import reference_decoder as reference

FLOATS = ["F64", "F32", "F16", "BF16"]


def words_of(values, name):
    """Stored bytes of values rounded to a type."""
    view = word_view(DTYPES[name], *values.shape)
    if name == "F64":
        return np.frombuffer(values.astype("<f8").tobytes(), np.uint8)
    return np.frombuffer(as_words(values.astype(np.float32).ravel(), view).tobytes(), np.uint8)


def weights(shape, seed=0, scale=0.02):
    """Something like weights: rows and columns of several scales."""
    rng = np.random.default_rng(seed)
    rows, columns = np.exp2(rng.uniform(-1, 1, (shape[0], 1))), np.exp2(rng.uniform(-1, 1, (1, shape[1])))
    return scale * rng.standard_normal(shape) * rows * columns


def encode(values, name="F32", quantizer=None, threads=1):
    return encode_slab(
        words_of(values, name),
        DTYPES[name],
        *values.shape,
        planner=quantizer or Quantizer(0.18),
        threads=threads,
    )


def decode(slab, name, shape, threads=1):
    return decode_slab(slab.head, slab.chunks, DTYPES[name], *shape, rounded=True, threads=threads)


def error(slab, values, name="F32"):
    """Normalised mean squared error of what comes back."""
    view = word_view(DTYPES[name], *values.shape)
    truth, found = (
        as_floats(w.view(view.word), view).astype(float) for w in (words_of(values, name), slab.decoded)
    )
    return np.square(truth - found).sum() / np.square(truth).sum()


@pytest.mark.parametrize("trellis", [True, False])
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(32, 32), (100, 90), (300, 230)])
def test_what_the_head_promises_comes_back(name, shape, trellis):
    values = weights(shape)
    slab = encode(values, name, Quantizer(0.18, trellis))
    assert Coder(slab.head[0]) == (Coder.TCQ if trellis else Coder.ECSQ)
    assert decode(slab, name, shape).tobytes() == slab.decoded.tobytes()
    assert reference.decode_slab(slab.head, slab.chunks, name, *shape) == slab.decoded.tobytes()
    assert 0.0001 < error(slab, values, name) < 0.012


def test_several_chunks_decode_alike_for_any_number_of_threads():
    values = weights((700, 900))
    slab = encode(values, "BF16")
    assert len(slab.chunks) == 3
    for threads in (2, 7):
        other = encode(values, "BF16", threads=threads)
        assert (other.head, other.chunks) == (slab.head, slab.chunks)
        assert decode(slab, "BF16", (700, 900), threads).tobytes() == slab.decoded.tobytes()


@given(st.integers(0, 1 << 30), st.floats(0.01, 1.5), st.sampled_from(FLOATS), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_weights_come_back_as_promised(seed, step, name, trellis):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(32, 60, 2).tolist())
    values = rng.standard_t(2 + seed % 5, shape) * 10.0 ** rng.integers(-3, 2)
    slab = encode(values, name, Quantizer(step, trellis))
    assert reference.decode_slab(slab.head, slab.chunks, name, *shape) == decode(slab, name, shape).tobytes()


@pytest.mark.parametrize("trellis", [True, False])
def test_a_larger_step_costs_less_and_loses_more(trellis):
    values = weights((400, 500))
    slabs = [encode(values, quantizer=Quantizer(step, trellis)) for step in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)]
    sizes, errors = [slab.nbytes for slab in slabs], [error(slab, values) for slab in slabs]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_the_trellis_and_a_second_search_pay():
    values = weights((500, 500))
    fine, once, plain = (
        encode(values, quantizer=q)
        for q in (Quantizer(0.37), Quantizer(0.37, passes=1), Quantizer(0.63, trellis=False))
    )
    gaps = [8 * slab.nbytes / values.size + np.log2(error(slab, values)) / 2 for slab in (fine, once, plain)]
    assert gaps[0] < gaps[1] < gaps[2] - 0.08


@pytest.mark.parametrize("octaves", [-9, 7])
def test_scaled_weights_come_back_scaled(octaves):
    values = weights((64, 300)).astype(np.float32)
    slab, other = encode(values), encode(values * 2.0**octaves)
    assert slab.chunks == other.chunks
    assert (slab.decoded.view("<f4") * np.float32(2.0**octaves)).tobytes() == other.decoded.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_values_that_are_not_finite_are_kept_bit_for_bit(name, bad):
    values = weights((40, 50))
    values[3, 4] = bad
    slab = encode(values, name)
    assert (Coder(slab.head[0]), slab.decoded) == (Coder.SYMBOLS, None)
    assert (
        decode_slab(slab.head, slab.chunks, DTYPES[name], 40, 50).tobytes()
        == words_of(values, name).tobytes()
    )


@pytest.mark.parametrize("scale", [1e-320, 1e-170, 1e300])
def test_weights_that_no_step_fits_are_kept_bit_for_bit(scale):
    slab = encode(weights((40, 50), scale=scale), "F64")
    assert Coder(slab.head[0]) in {Coder.RAW, Coder.SYMBOLS}
    assert slab.decoded is None


def test_weights_that_would_round_to_infinity_are_kept_bit_for_bit():
    values = np.full((40, 50), 65504.0)
    values[::2] = 65000.0
    assert encode(values, "F16", Quantizer(0.75)).decoded is None


def test_constant_weights_are_a_head_alone():
    assert Coder(encode(np.full((40, 50), 0.5)).head[0]) == Coder.CONST


def test_an_outlier_stays_in_band():
    values = weights((100, 300))
    values[7, 11] = 1e30
    slab = encode(values, "F32", Quantizer(0.02))
    found = decode(slab, "F32", (100, 300)).view("<f4")
    assert abs(found[7 * 300 + 11] / 1e30 - 1) < 0.01
    assert reference.decode_slab(slab.head, slab.chunks, "F32", 100, 300) == found.tobytes()


def test_rounded_weights_are_refused_where_every_bit_was_to_be_kept():
    slab = encode(weights((40, 50)))
    with pytest.raises(ChecksumMismatch, match="rounded"):
        decode_slab(slab.head, slab.chunks, DTYPES["F32"], 40, 50)


@pytest.mark.parametrize("trellis", [True, False])
def test_flipped_bits_never_crash(trellis):
    rng = np.random.default_rng(3)
    values = weights((96, 100))
    values[5, 5] = 30.0  # raw bits
    slab = encode(values, "BF16", Quantizer(0.1, trellis))
    whole = slab.head + slab.chunks[0]
    for position in [*range(400), *rng.integers(0, 8 * len(whole), 1200).tolist()]:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        head, chunk = bytes(damaged[: len(slab.head)]), bytes(damaged[len(slab.head) :])
        try:
            decoded = decode_slab(head, [chunk], DTYPES["BF16"], 96, 100, rounded=True)
        except (VerificationError, UnsupportedVersion):
            continue
        assert decoded.size == 2 * 96 * 100


def test_arbitrary_chunks_are_refused():
    rng = np.random.default_rng(2)
    slab = encode(weights((100, 120)))
    for size in rng.integers(0, 6000, 200).tolist():
        lanes = rng.integers(1 << 16, 1 << 32, 8, np.uint64).astype("<u4").tobytes()
        with pytest.raises(ChecksumMismatch):
            decode_slab(
                slab.head,
                [lanes + (size // 4).to_bytes(4, "little") + rng.bytes(size)],
                DTYPES["F32"],
                100,
                120,
                rounded=True,
            )


def test_a_table_that_nothing_was_coded_with_is_refused():
    """A class needs a table for the quantiser in use, not only for the other one."""
    values = weights((100, 120))
    slab = encode(values)
    view = word_view(DTYPES["F32"], 100, 120)
    head = parse_head(slab.head, view)
    head.codes[1::2] = 0
    with pytest.raises(ChecksumMismatch):
        decode_slab(pack_head(head), slab.chunks, DTYPES["F32"], 100, 120, rounded=True)


def ramp():
    """A pattern no random generator can change, with an outlier."""
    i, j = np.mgrid[:32, :32]
    values = ((i * 7 + j * j * 3 + i * j) % 23 - 11) / 64
    values[9, 9] = 3.0
    return values


@pytest.mark.parametrize("name", ["BF16", "F64", "F16"])
def test_golden_slabs(name):
    """The decoder is the format: these bytes decode to these weights for ever."""
    head, chunk, digest = GOLDEN[name]
    slab = encode(ramp(), name, Quantizer(0.5, trellis=name != "F16"))
    assert (slab.head.hex(), slab.chunks[0].hex()) == (head, chunk)
    assert sha256(decode(slab, name, (32, 32)).data).hexdigest() == digest


GOLDEN = {
    "BF16": (
        "0301220000000000000000001a0000003cb7351366c9313ff80080070000834200aa0700000000f0244992244992244992240900baa9d708",
        "392e730389bb6fd94f921101e6ad4800b58a7600150c13007bb52e024a3e0f00600000006624d37c9b80c6d51304da017751ecbcebb8f5438dfc7d3c876e77259437ea185b27db9265dadd080d28697a118abc09b946ee12aa2ffacfebc5c1a6be3b594ca6c1ffdc9dc5880f9af85f8d62fd60b771e9e4bd4ad0ee4797dbb8e1c98ef9fe152ee21fe047720d898ef4f99a8b5d5e988c76442e15c0e5a9acc545a5a8ed92339cc10f014b5534c2dce0adb6dee8777fc37c1fdeb805459372b7f9d292f2ab89aa5bef6ddbaba14b1f8836ff1eac7bfe1b3f3fa92a230719b5d7294fe9a51002",
        "344b8b0f2ff04d62be26415d1c777ba48729e939d283e6f4b0e2dae7e63f58fd",
    ),
    "F64": (
        "0301220000000000000000001a0000003cb7351366c9313ff80080070000834200aa0700000000f0244992244992244992240900baa9d708",
        "392e730389bb6fd94f921101e6ad4800b58a7600150c13007bb52e024a3e0f00600000006624d37c9b80c6d51304da017751ecbcebb8f5438dfc7d3c876e77259437ea185b27db9265dadd080d28697a118abc09b946ee12aa2ffacfebc5c1a6be3b594ca6c1ffdc9dc5880f9af85f8d62fd60b771e9e4bd4ad0ee4797dbb8e1c98ef9fe152ee21fe047720d898ef4f99a8b5d5e988c76442e15c0e5a9acc545a5a8ed92339cc10f014b5534c2dce0adb6dee8777fc37c1fdeb805459372b7f9d292f2ab89aa5bef6ddbaba14b1f8836ff1eac7bfe1b3f3fa92a230719b5d7294fe9a51002",
        "8694d65620b397b23638f97f7cf9b842f761a39158388d77bb9857c91bb4450b",
    ),
    "F16": (
        "04012a000000000000000000190000003cb7351366c9313f030a2e000000834a00659500000000009624499224499224499224499204a0",
        "70eda65ae43f0100e3637d03363f4601ea2d62009e977f01dbb5920170a2430590000000b8c0ceb77b44f41907f868ca3597fe013f1b01337a9f821af0a5c3a5953046525c5bb64c44759b90c7fd59187c1b498543cd086c325017c0a8e60f2fc804d4ff74b02c0405e63dfa42e29ba8c936ba7407d68d9edb7c6973b4ebb6a981acd63621a1870fd096e9a399bf420cb63ec977675e0e8641786574799afeb257284d1377787c0d8afabaa3a0f3b6f4a89864aeb3794b05f0bafb065eccddff24241f6486be9a9df0bb788433349c9ff76097cb1b614d4d58cafa045115170e072284dc1c312baa1d55d02f77016edfb2aeb8ab51190fcb22e4312f61813beff32d24570f35795eb39b8b813e77475ace135078cd5d6a591870c410368fc7fad1aa00ec7150b01f55339916a7838b016be2f6d518ca98c3e03e68cfa47a5c4e586f301b03",
        "44092777242469b4eea445e11be7e3f0463dfccb71336302fb5274458105bf35",
    ),
}
