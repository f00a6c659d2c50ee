"""Exact differences of slabs: the plans of hilm.reel.plan and the expectations of hilm.reel.delta_model."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import ChecksumMismatch
from hilm.reel.delta import delta_decoder, plan_delta
from hilm.reel.head import Coder, pack_head
from hilm.reel.slab import EncodedSlab, decode_slab, encode_slab
from hilm.reel.words import word_view
from hilm.weights.dtypes import DTYPES
from tests.tiny import BITS

NAMES = [name for name in BITS if name not in {"F4", "F6_E2M3", "F6_E3M2"}]
HARD = {"F64", "I64", "U64"}  # differences of 2^32 and more are left to the archive's coder


def planned(words, base, name, rows):
    view = word_view(DTYPES[name], rows, words.size // rows)
    return plan_delta(words.view(view.word), base.view(view.word), view)


def coded(words, base, name, rows):
    return encode_slab(
        words.view(np.uint8),
        DTYPES[name],
        rows,
        words.size // rows,
        planner=lambda stored, view, _: plan_delta(stored, base.view(view.word), view),
    )


def comes_back(words, base, name, rows):
    """With the coder alone where it can, and in the slab that is written."""
    plan, slab = planned(words, base, name, rows), coded(words, base, name, rows)
    slabs = [slab]
    if plan is not None:
        spans = plan.head.view.ranges() if plan.head.coder != Coder.SAME else []
        slabs.append(EncodedSlab(pack_head(plan.head), [plan.encode(*span) for span in spans]))
    back = [
        decode_slab(s.head, s.chunks, DTYPES[name], rows, words.size // rows, base=base.view(np.uint8).copy())
        for s in slabs
    ]
    return all(b.tobytes() == words.tobytes() for b in back)


def size(words, base, name, rows):
    plan = planned(words, base, name, rows)
    return len(pack_head(plan.head)) + sum(len(plan.encode(*span)) for span in plan.head.view.ranges())


def edges(bits):
    top, full = 1 << bits - 1, (1 << bits) - 1
    return st.sampled_from([0, 1, top - 1, top, top + 1, full - 1, full]) | st.integers(0, full)


@given(st.sampled_from(NAMES), st.integers(1, 4), st.data())
@settings(deadline=None, max_examples=150)
def test_any_words_come_back_given_any_base(name, rows, data):
    bits = DTYPES[name].word.itemsize * 8
    columns = data.draw(st.sampled_from([1, 3, 31, 32, 40]))
    pairs = data.draw(st.lists(st.tuples(edges(bits), edges(bits)), min_size=1, max_size=20))
    words, base = (
        np.resize(np.array(side, DTYPES[name].word), rows * columns) for side in zip(*pairs, strict=True)
    )
    if name in HARD and planned(words, base, name, rows) is None:
        number = (
            (lambda w: w ^ ((1 << bits) - 1 if w >> bits - 1 else 1 << bits - 1)) if name == "F64" else int
        )
        steps = [(number(a) - number(b)) % (1 << bits) for a, b in pairs]
        assert any(min(step, (1 << bits) - step) >= 1 << 32 for step in steps)
    assert comes_back(words, base, name, rows)


@pytest.mark.parametrize("name", ["F16", "BF16", "I16", "U16"])
def test_every_word_of_16_bits_comes_back_from_every_kind_of_base(name):
    words = np.arange(1 << 16, dtype="<u2")
    rng = np.random.default_rng(0)
    for base in (rng.permutation(words), words ^ 1, words ^ 0x8000, np.zeros_like(words), words[::-1].copy()):
        assert comes_back(words, base, name, 256)


@pytest.mark.parametrize(
    "name", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "U8", "BOOL"]
)
def test_every_pair_of_bytes_comes_back(name):
    words, base = (side.reshape(-1).astype("u1") for side in np.meshgrid(np.arange(256), np.arange(256)))
    assert comes_back(words, base, name, 256)


def test_special_floats_come_back():
    odd = np.array([0, 1 << 31, 0x7F800001, 0xFF812345, 0x7F800000, 0xFF800000, 1, 0x7149F2CA], "<u4")
    words, base = (side.reshape(-1) for side in np.meshgrid(odd, odd))
    assert comes_back(words.copy(), base.copy(), "F32", 8)


def test_chunks_are_decoded_on_their_own_and_rows_may_cross_them():
    rng = np.random.default_rng(1)
    base = rng.standard_normal(3 * 100_001).astype("<f4").view("<u4")
    words = base + rng.integers(0, 3, base.size).astype("<u4")
    plan = planned(words, base, "F32", 3)
    start, stop = plan.head.view.ranges()[1]
    out = base[start:stop].copy()
    delta_decoder(plan.head)(plan.encode(start, stop), start, out)
    assert (out == words[start:stop]).all()


def fine_tuned(rows, columns, share, seed=0):
    """bfloat16 weights, and a copy whose rows changed by different amounts."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((rows, columns)).astype("<f4") * np.float32(0.05)
    noise = rng.standard_normal((rows, columns)) * np.linspace(0, share, rows)[:, None]
    return ((base + noise).astype("<f4").view("<u4") >> 16).astype("<u2"), (base.view("<u4") >> 16).astype(
        "<u2"
    )


def test_small_changes_are_small_and_what_changes_little_costs_little():
    words, base = (side.reshape(-1) for side in fine_tuned(512, 512, 1e-4))
    assert 0.2 < np.mean(words != base) < 0.4
    planes = (words ^ base).view("u1").reshape(-1, 2).T
    assert size(words, base, "BF16", 512) < 0.6 * sum(
        len(zstandard.compress(plane.tobytes())) for plane in planes
    )
    few = base.copy()
    few[::1000] += 1
    assert 8 * size(few, base, "BF16", 512) / few.size < 0.05


def test_activity_of_rows_pays():
    words, base = fine_tuned(512, 512, 4e-4)
    mixed = np.random.default_rng(1).permutation(512 * 512)  # the same words, the rows torn apart
    torn = size(words.reshape(-1)[mixed], base.reshape(-1)[mixed], "BF16", 512)
    assert size(words.reshape(-1), base.reshape(-1), "BF16", 512) < 0.95 * torn


def shrunk(base, steps, rates):
    """What decoupled weight decay leaves of float32 weights, step by step."""
    for step in range(steps):
        base = base * np.float32(1 - rates[step % len(rates)] * 0.01)
    return base


@pytest.mark.parametrize("rates", [[2e-5], [1e-5, 2e-5, 5e-5, 3e-5]])
def test_weight_decay_is_expected(rates):
    rng = np.random.default_rng(3)
    base = rng.standard_normal(400 * 512).astype("<f4") * np.float32(0.05)
    words = shrunk(base, 40, rates)
    words[: 50 * 512] += rng.standard_normal(50 * 512).astype("<f4") * np.float32(1e-3)  # trained rows
    plan = planned(words.view("<u4"), base.view("<u4"), "F32", 400)
    assert np.count_nonzero(plan.head.model.drift) > 200
    assert comes_back(words.view("<u4"), base.view("<u4"), "F32", 400)
    trained = size(words[: 50 * 512].view("<u4"), base[: 50 * 512].view("<u4"), "F32", 50)
    whole = size(words.view("<u4"), base.view("<u4"), "F32", 400)
    assert 8 * (whole - trained) / (350 * 512) < (0.3 if len(rates) == 1 else 1.5)


def test_no_drift_is_sent_where_there_is_none():
    words, base = (side.reshape(-1) for side in fine_tuned(64, 512, 1e-3))
    wide = words.astype("<u4") << 16, base.astype("<u4") << 16
    assert not planned(*wide, "F32", 64).head.model.drift.any()


def test_another_base_is_noticed_or_decodes_to_other_words():
    words, base = (side.reshape(-1) for side in fine_tuned(64, 64, 1e-3))
    plan = planned(words, base, "BF16", 64)
    rng = np.random.default_rng(5)
    for _ in range(50):
        out = rng.permutation(base)
        try:
            delta_decoder(plan.head)(plan.encode(0, words.size), 0, out)
        except ChecksumMismatch:
            continue
        assert (out != words).any()


def test_arbitrary_chunks_are_refused():
    words, base = (side.reshape(-1) for side in fine_tuned(64, 64, 1e-3))
    decode, rng = delta_decoder(planned(words, base, "BF16", 64).head), np.random.default_rng(2)
    for length in rng.integers(0, 3000, 300).tolist():
        lanes = rng.integers(1 << 16, 1 << 32, 8, np.uint64).astype("<u4").tobytes()
        chunk = lanes + (length // 4).to_bytes(4, "little") + rng.bytes(length)
        with pytest.raises(ChecksumMismatch):
            decode(chunk, 0, base.copy())
