from __future__ import annotations

import hashlib
import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import UsageError
from hilm.lineage.digest import DigestAccumulator, model_digest
from hilm.lineage.signs import seed, words

MASK = (1 << 64) - 1
SPECIAL = np.array(
    [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, -1e-45, 1e-45, -1e-40, 3.4e38, -3.4e38], np.float32
)


def published(tag, count):
    """The u-tensor that published vectors are made of."""
    return ((words(seed(tag), 0, count) >> np.uint64(40)) / 2.0**24 - 0.5).astype(np.float32)


def slow_digest(kind, shape, values):
    values = np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0.0))
    if kind == "b16":
        values = values.astype(ml_dtypes.bfloat16)
        values[values == 0] = 0
    body = values.astype("<f4").tobytes() if kind == "f32" else values.view("<u2").tobytes()
    length = len(body)
    if length > 32768:
        lanes = [(lane + 1) * 0xBF58476D1CE4E5B9 & MASK for lane in range(4096)]
        for w, word in enumerate(np.frombuffer(body + bytes(-length % 8), "<u8").tolist()):
            x = (lanes[w % 4096] ^ word) * 0x9E3779B97F4A7C15 & MASK
            lanes[w % 4096] = x ^ (x >> 32)
        body = np.array(lanes, "<u8").tobytes()
    header = f"{kind}|{'x'.join(map(str, shape))}|".encode()
    return hashlib.sha256(header + length.to_bytes(8, "little") + body).digest()[:8]


def slow_exact(shape, values):
    rounded = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    if np.array_equal(rounded, values, equal_nan=True):
        return hashlib.sha256(b"exact-b16|" + slow_digest("b16", shape, values)).digest()[:8]
    return slow_digest("f32", shape, values)


def digest(values, shape, *, dtype="F32", cuts=(), prefix=None):
    accumulator = DigestAccumulator(dtype, shape, prefix_values=prefix)
    stored = values.astype(ml_dtypes.bfloat16) if dtype == "BF16" else values
    bounds = [0, *sorted(cuts), values.size]
    for start, stop in itertools.pairwise(bounds):
        accumulator.update(values[start:stop], stored[start:stop].view(np.uint8))
    return accumulator.finish()


@pytest.mark.parametrize(
    ("shape", "exact", "half", "copy"),
    [
        ((64, 64), "3db0871635f48c01", "ad28c273ceebd71b", "c3b39cb7edd4ce97"),
        ((300, 257), "3de3024eb5bb7ae1", "838ce9243d349178", "c34e8380af67e022"),
    ],
)
def test_published_digests(shape, exact, half, copy):
    values = published("test/W", shape[0] * shape[1])
    found = digest(values, shape)
    assert (found.exact.hex(), found.half.hex(), found.prefix) == (exact, half, None)
    rounded = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    stored = digest(rounded, shape, dtype="BF16")
    assert (stored.exact.hex(), stored.half.hex()) == (copy, half)
    assert digest(rounded, shape) == stored


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_equals_the_slow_form_for_any_cut(data):
    size = data.draw(st.sampled_from([0, 1, 7, 8192, 8193, 16384, 16385, 40003, 70001]))
    dtype = data.draw(st.sampled_from(["F32", "BF16"]))
    cuts = data.draw(st.lists(st.integers(0, size), max_size=6))
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    values = random.standard_normal(size, dtype=np.float32)
    if size and data.draw(st.booleans()):
        values[random.integers(0, size, 30)] = random.choice(SPECIAL, 30)
    if dtype == "BF16":
        values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    found = digest(values, (size,), dtype=dtype, cuts=cuts)
    assert found.half == slow_digest("b16", (size,), values)
    assert found.exact == slow_exact((size,), values)


def test_one_round_of_lanes_and_more():
    values = np.random.default_rng(0).standard_normal(262144 + 5, dtype=np.float32)
    expected = slow_exact(values.shape, values), slow_digest("b16", values.shape, values)
    for cuts in ((), (3,), (8190, 8192), (131072,)):
        found = digest(values, values.shape, cuts=cuts)
        assert (found.exact, found.half) == expected


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("rows", [64, 2048, 2500])
def test_prefix_survives_added_rows(dtype, rows):
    values = np.random.default_rng(1).standard_normal((rows, 16), dtype=np.float32).astype(ml_dtypes.bfloat16)
    values = values.astype(np.float32).ravel()
    found = digest(
        values, (rows, 16), dtype=dtype, cuts=(5, 32766, 32768) if rows >= 2048 else (), prefix=2048 * 16
    )
    head = min(rows, 2048)
    assert found.prefix == slow_digest("b16", (head, 16), values[: head * 16])


def test_shape_and_single_values_matter():
    values = np.random.default_rng(2).standard_normal(20000, dtype=np.float32)
    base = digest(values, (200, 100))
    assert base.exact != digest(values, (100, 200)).exact
    for place in (0, 9999, 19999):
        changed = values.copy()
        changed[place] = np.nextafter(changed[place], np.float32(9))
        assert digest(changed, (200, 100)).exact != base.exact


def test_equal_values_have_one_spelling():
    values = np.random.default_rng(3).standard_normal(30000, dtype=np.float32)
    values[::7], values[1::7] = 0.0, np.nan
    other = values.copy()
    other[::7], other[1::7] = -0.0, -np.nan
    assert digest(values, (30000,)) == digest(other, (30000,))


@pytest.mark.parametrize("size", [10, 20000])
def test_a_wrong_number_of_values_is_refused(size):
    accumulator = DigestAccumulator("F32", (size,))
    accumulator.update(np.zeros(size - 1, np.float32), np.zeros(0, np.uint8))
    with pytest.raises(UsageError, match=str(size - 1)):
        accumulator.finish()


def test_a_prefix_that_cannot_be_taken_in_passing_is_refused():
    with pytest.raises(UsageError, match="alone"):
        DigestAccumulator("F32", (50000, 2), prefix_values=4096)


def test_model_digest_counts_repetitions_but_not_order():
    a, b = b"a" * 8, b"b" * 8
    assert model_digest([a, b, b]) == model_digest([b, a, b]) != model_digest([a, b])
