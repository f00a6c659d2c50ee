from __future__ import annotations

import numpy as np
import pytest

from hilm.reel.carrier import CARRIERS
from hilm.reel.encoder import encode_archive
from hilm.reel.price import choose_layout, quote
from hilm.reel.quantizer import Quantizer
from hilm.weights.checkpoint import open_checkpoint
from hilm.weights.dtypes import DTYPES
from tests.tiny import stored, write_model

F32 = DTYPES["F32"]


def choose(matrix, carrier="ffv1", **options):
    words = matrix.astype(np.float32).view(np.uint8).reshape(-1)
    return choose_layout(words, F32, *matrix.shape, CARRIERS[carrier], **options)


def cosines(side=1024):
    """A discrete Fourier basis, smooth in both directions."""
    k = np.arange(side)
    return np.cos(2 * np.pi * np.outer(k, k) / (64 * side))


@pytest.mark.parametrize("planner", [None, Quantizer(0.05)])
def test_what_is_smooth_in_two_directions_lies_in_tiles(planner):
    assert choose(cosines(), planner=planner) == ("raster", 0.0)


def test_noise_keeps_the_first_layout():
    noise = np.random.default_rng(0).standard_normal((1024, 1024))
    assert choose(noise) == ("raster", 0.0)
    assert choose(noise[:, :384]) == ("flat", 0.0)


def test_another_layout_must_save_half_a_percent():
    rng = np.random.default_rng(0)
    scales = np.repeat(
        np.exp(2 * rng.standard_normal(1050)), 256
    )  # of runs, which are blocks along the curve
    matrix = (rng.standard_normal(scales.size) * scales).reshape(700, 384)
    layout, gain = choose(matrix, planner=Quantizer(0.1))
    assert layout == "hilbert"
    assert 0.5 <= gain < 50


def test_a_layout_that_is_asked_for_is_not_measured():
    noise = np.random.default_rng(0).standard_normal((600, 600))
    assert choose(noise, wanted="hilbert") == ("hilbert", 0.0)
    assert choose(noise, wanted="raster") == ("flat", 0.0)  # tiles would be two thirds empty


@pytest.mark.parametrize("carrier", ["ffv1", "utvideo"])
def test_the_price_is_what_a_reel_of_that_tensor_takes(tmp_path, carrier):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((512, 1024)).astype(np.float32)
    model = write_model(tmp_path / "model", {"w": stored(matrix), "v": stored(matrix[0])})
    with open_checkpoint(model) as checkpoint:
        price = quote(checkpoint, CARRIERS[carrier], None)
        report = encode_archive(checkpoint, tmp_path / "x.mp4", preview=False, carrier=carrier, layout="flat")
    assert price.tensor == "w"
    assert price.carried == pytest.approx(report.reel.bits_per_weight, rel=0.02)
    assert price.packed < price.carried


def test_a_model_of_small_tensors_has_no_price(tmp_path):
    model = write_model(tmp_path / "model", {"w": stored(np.ones((40, 40), np.float32))})
    with open_checkpoint(model) as checkpoint:
        assert quote(checkpoint, CARRIERS["ffv1"], None) == (None, None, None)
