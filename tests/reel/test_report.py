from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
import pytest

from hilm.errors import BaseMismatch, UsageError, VerificationError
from hilm.reel.block_formats import FORMATS
from hilm.reel.decoder import Reel
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.reel.encoder import encode_archive, encode_small
from hilm.reel.rate import Rounding
from hilm.reel.report import Figures, measure_reel, total
from hilm.weights import open_checkpoint
from tests.tiny import stored, write_model


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(3)
    first, second = (random.standard_normal(s, np.float32) for s in ((256, 96), (100, 33)))
    return {"a": first, "b": stored(second, "BF16"), "norm": np.ones(40, np.float32) + first[0, :40]}


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("report") / "model", weights)


@contextmanager
def encoded(encode, model, out, *arguments, **options):
    with open_checkpoint(model) as checkpoint:
        encode(checkpoint, out, *arguments, preview=False, **options)
        with Reel.open(out) as reel:
            yield reel, CheckpointBase(checkpoint)


def nmse(found, truth):
    return np.square(found - truth, dtype=np.float64).sum() / np.square(truth, dtype=np.float64).sum()


def test_rounded_weights_are_compared_with_block_formats(model, weights, tmp_path):
    names = []
    with encoded(encode_small, model, tmp_path / "x.mp4", Rounding(bits=4)) as (reel, truth):
        measured, _ = measure_reel(reel, truth, tick=names.append)
        found = reel.tensor("a")
    assert names == ["a", "b", "norm"]
    by_name = {tensor.entry["name"]: tensor for tensor in measured}
    assert [tensor.rounded for tensor in by_name.values()] == [True, True, False]
    own, others = by_name["a"].own, by_name["a"].others
    assert own.error["nmse"] == pytest.approx(nmse(found, weights["a"]), rel=1e-9)
    assert own.gap == pytest.approx(own.bits - 0.5 * math.log2(1 / own.error["nmse"]))
    assert others.keys() == FORMATS.keys()
    for name, figures in others.items():
        rounded = FORMATS[name].round(weights["a"])
        assert figures.bits == FORMATS[name].bits
        assert figures.error["nmse"] == pytest.approx(nmse(rounded, weights["a"]), rel=1e-6)
        assert figures.error["max_abs"] == np.abs(rounded - weights["a"]).max()
        assert figures.gap > own.gap
    filled = by_name["b"].others["q4_k"].bits * 3300
    assert filled == pytest.approx(4.5 * 13 * 256)


def test_totals_are_means_by_weights(model, tmp_path):
    with encoded(encode_small, model, tmp_path / "x.mp4", Rounding(bits=4)) as (reel, truth):
        measured, _ = measure_reel(reel, truth)
    a, b = (tensor.document() for tensor in measured if tensor.rounded)
    both = total(tensor for tensor in measured if tensor.rounded)
    shares = np.array([256 * 96, 3300]) / (256 * 96 + 3300)
    assert (both["tensors"], both["weights"]) == (2, 256 * 96 + 3300)
    for key in ("bits_per_weight", "nmse", "cosine"):
        assert both[key] == pytest.approx(shares @ [a[key], b[key]])
        mean = shares @ [t["others"]["nf4"][key] for t in (a, b)]
        assert both["others"]["nf4"][key] == pytest.approx(mean)
    assert both["max_abs"] == max(a["max_abs"], b["max_abs"])
    nf4 = both["others"]["nf4"]
    assert nf4["saved"] == pytest.approx(nf4["gap"] - both["gap"])
    assert total([]) is None


def test_another_model_is_not_what_was_rounded(model, weights, tmp_path):
    other = write_model(tmp_path / "other", weights | {"a": weights["a"] * 2})
    less = write_model(tmp_path / "less", {"a": weights["a"][:-1]})
    with encoded(encode_small, model, tmp_path / "x.mp4", Rounding(bits=4)) as (reel, _):
        with open_checkpoint(other) as checkpoint, pytest.raises(VerificationError, match="another one"):
            measure_reel(reel, CheckpointBase(checkpoint))
        with open_checkpoint(less) as checkpoint, pytest.raises(BaseMismatch):
            measure_reel(reel, CheckpointBase(checkpoint))
        without, _ = measure_reel(reel)
        assert [len(tensor.others) for tensor in without] == [0, 0, 3]
        alone, _ = measure_reel(reel, others=False)
        assert [len(tensor.others) for tensor in alone] == [0, 0, 0]
        assert [tensor.own for tensor in alone] == [tensor.own for tensor in without]


def test_an_archive_is_compared_with_lossless_codecs(model, tmp_path):
    with encoded(encode_archive, model, tmp_path / "x.mp4") as (reel, _):
        measured, missing = measure_reel(reel)
        entries = reel.tensors
    document = total(measured)
    assert not missing
    assert document["bits_per_weight"] * document["weights"] == sum(e["bits"] for e in entries.values())
    assert document["gap"] is None
    assert document["others"].keys() == {"zstd-3", "zstd-19", "zipnn"}
    for other in document["others"].values():
        assert other["saved"] == other["bits_per_weight"] - document["bits_per_weight"]


def test_a_delta_is_compared_with_xor(model, weights, tmp_path):
    changed = weights["a"].copy()
    changed[0] += np.float32(1e-4)
    tuned = write_model(tmp_path / "tuned", weights | {"a": changed})
    with open_checkpoint(model) as old:
        base = CheckpointBase(old)
        with encoded(encode_delta, tuned, tmp_path / "x.mp4", base) as (reel, _):
            with pytest.raises(UsageError, match="base is not there"):
                measure_reel(reel)
            reel.stand_on(base)
            document = total(measure_reel(reel)[0])
    bits = {name: other["bits_per_weight"] for name, other in document["others"].items()}
    assert bits["xor+zstd-3"] < 1
    assert bits["zstd-19"] > 20


def test_a_rounded_difference_is_judged_by_the_energy_it_loses(model, weights, tmp_path):
    moved = np.random.default_rng(5).standard_normal(weights["a"].shape, np.float32)
    tuned = write_model(tmp_path / "tuned", weights | {"a": weights["a"] + moved / 100})
    with open_checkpoint(model) as old:
        base = CheckpointBase(old)
        with encoded(encode_delta, tuned, tmp_path / "x.mp4", base, bits=3.0) as (reel, truth):
            reel.stand_on(base)
            (a,) = (t for t in measure_reel(reel, truth)[0] if t.rounded)
    lost = a.own.error["energy_lost"]
    assert a.own.gap == pytest.approx(a.own.bits - 0.5 * math.log2(1 / lost))
    assert -0.2 < a.own.gap < 0.5
    assert not a.others
    assert total([a])["gap"] == pytest.approx(a.own.gap)


@pytest.mark.parametrize("lost", [0.0, math.inf, math.nan])
def test_what_loses_nothing_or_everything_has_no_gap(lost):
    assert Figures.of(4, 3.0, {"nmse": lost, "max_abs": 0.0, "cosine": 1.0}).gap is None
