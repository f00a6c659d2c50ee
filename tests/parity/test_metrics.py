from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import InputError
from hilm.parity import metrics
from hilm.parity.inputs import grid_keys
from hilm.parity.metrics import align, judge, measure, worst_tokens
from hilm.reel.decoder import Reel
from hilm.reel.encoder import encode_small
from hilm.reel.rate import Rounding
from hilm.reel.verification import verify_reel
from hilm.weights import open_checkpoint
from tests.tiny import write_model

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((50, 16)).astype(np.float32)


def test_equal_tokens_are_equal_to_the_last_digit():
    found = measure(ROWS, ROWS.copy())
    assert found.equal
    assert abs(found.cosine_min - 1) < 1e-12
    assert abs(found.cosine_max - 1) < 1e-12
    assert (found.rel_l2, found.norm_ratio, found.sqnr_db) == (0, 1, math.inf)
    assert judge(found) == ""


def test_figures_are_those_of_a_slow_twin():
    other = ROWS + 0.01 * RANDOM.standard_normal(ROWS.shape).astype(np.float32)
    found = measure(ROWS, other)
    r, c = ROWS.astype(float), other.astype(float)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(r, c, strict=True)]
    assert found.cosine_min == pytest.approx(min(cosines), abs=1e-14)
    assert found.cosine_mean == pytest.approx(np.mean(cosines), abs=1e-14)
    assert found.rel_l2 == pytest.approx(np.linalg.norm(c - r) / np.linalg.norm(r), rel=1e-12)
    assert found.max_abs == np.abs(c - r).max()
    assert found.mean_abs == pytest.approx(np.abs(c - r).mean(), rel=1e-12)
    assert found.sqnr_db == pytest.approx(-20 * math.log10(found.rel_l2), rel=1e-12)


@given(st.integers(1, 40))
def test_figures_do_not_depend_on_how_rows_are_cut(rows):
    other = ROWS * np.float32(1.001)
    whole = measure(ROWS, other).figures()
    kept = metrics.CHUNK_VALUES
    metrics.CHUNK_VALUES = 16 * rows
    try:
        assert measure(ROWS, other).figures() == whole
    finally:
        metrics.CHUNK_VALUES = kept


def test_scaled_features_do_not_pass():
    assert "norm ratio 7" in judge(measure(ROWS, 7 * ROWS))
    assert judge(measure(ROWS, 1.05 * ROWS)) == ""


def test_zero_rows():
    one, both = ROWS.copy(), ROWS.copy()
    one[3], both[3] = 0, 0
    assert measure(ROWS, one).cosine_min == 0
    assert measure(both, both.copy()).cosine_min == 1
    assert measure(np.zeros((2, 3)), np.ones((2, 3))).rel_l2 == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_named(value):
    other = ROWS.copy()
    other[7, 2] = value
    found = measure(ROWS, other)
    assert (found.nonfinite, found.first_nonfinite, found.equal) == (1, 7, False)
    assert "first at token 7" in judge(found)
    assert found.error == math.inf


def test_huge_values_do_not_overflow():
    found = measure(ROWS * np.float32(1e30), ROWS * np.float32(1e30))
    assert (found.equal, found.norm_ratio) == (True, 1)


def test_the_threshold_is_strict():
    other = ROWS + 0.1 * RANDOM.standard_normal(ROWS.shape).astype(np.float32)
    found = measure(ROWS, other)
    assert judge(found, threshold=found.cosine_min) == f"min cosine <= {found.cosine_min:g}"
    assert judge(found, threshold=found.cosine_min - 1e-9) == ""


@pytest.mark.parametrize("shape", [(49, 16), (50, 15), (0, 16)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="do not match"):
        measure(ROWS, np.zeros(shape))


def test_order_does_not_matter_and_padding_is_left_out():
    keys = grid_keys(2, 3, 4)
    padded = np.concatenate([np.full((5, 4), -1, np.int32), keys])
    order = RANDOM.permutation(len(padded))
    first, second, problem = align(keys, padded[order])
    assert problem == ""
    assert len(first) == 24
    assert (keys[first] == padded[order][second]).all()


def test_tokens_in_front_of_the_patches_are_tokens():
    front = np.array([[0, -1, 0, 0]], np.int32)
    keys = np.concatenate([front, grid_keys(1, 2, 2)])
    assert align(keys, keys)[2] == ""
    assert align(keys, keys[1:])[2].startswith(
        "1 missing tokens, the first (sample, t, y, x) = (0, -1, 0, 0)"
    )


def test_missing_extra_and_duplicate_tokens_are_named():
    keys = grid_keys(1, 2, 2)
    assert "1 missing tokens" in align(keys, keys[:-1])[2]
    assert "1 extra tokens" in align(keys[:-1], keys)[2]
    assert "1 duplicate tokens in the candidate" in align(keys, np.concatenate([keys, keys[:1]]))[2]


def test_the_worst_token_comes_first():
    other = ROWS.copy()
    other[9] += 1
    tokens = worst_tokens(measure(ROWS, other), grid_keys(1, 5, 10))
    assert tokens[0]["token"] == [0, 0, 0, 9]
    assert len(tokens) == metrics.WORST


def test_a_reel_is_verified_by_the_same_figures(tmp_path):
    matrix = np.random.default_rng(3).standard_normal((64, 96)).astype(np.float32)
    with open_checkpoint(write_model(tmp_path / "model", {"w": matrix})) as checkpoint:
        encode_small(checkpoint, tmp_path / "x.reel.mp4", Rounding(bits=3), preview=False)
        with Reel.open(tmp_path / "x.reel.mp4") as reel:
            report, decoded = verify_reel(reel, checkpoint), reel.tensor("w")
    measured = measure(matrix.reshape(1, -1), decoded.reshape(1, -1))
    assert report.ok
    assert report.nmse == pytest.approx(measured.rel_l2**2, rel=1e-9)
    assert report.max_abs == pytest.approx(measured.max_abs, rel=1e-9)
    assert report.rounded[0]["error"]["cosine"] == pytest.approx(measured.cosine_min, rel=1e-9)
