from __future__ import annotations

import numpy as np
import pytest

from hilm.weights import open_checkpoint
from hilm.weights.statistics import Moments, RoleStatistics
from tests.tiny import bert_like, stored, write_model


def test_figures_equal_numpy_over_each_role(tmp_path):
    tensors = bert_like(5)
    statistics = RoleStatistics()
    with open_checkpoint(write_model(tmp_path, tensors)) as checkpoint:
        for block in checkpoint.blocks():
            statistics.update(block.info.role.type, block.values)
        roles = {name: info.role.type for name, info in checkpoint.tensors.items()}
    for role, figures in statistics.summary().items():
        values = np.concatenate([t.ravel() for n, t in tensors.items() if roles[n] == role]).astype(
            np.float64
        )
        assert figures["parameters"] == len(values)
        assert figures["mean"] == pytest.approx(values.mean(), abs=1e-12)
        assert figures["std"] == pytest.approx(values.std(), rel=1e-9)
        assert (figures["min"], figures["max"]) == (values.min(), values.max())
        assert figures["zeros"] == (values == 0).sum()
        assert figures["nonfinite"] == 0


def test_nonfinite_values_are_counted_apart():
    moments = Moments()
    moments.update(np.array([1, np.nan, np.inf, -np.inf, 3], np.float32))
    assert moments.summary() == {
        "parameters": 5, "mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "zeros": 0, "nonfinite": 3,
    }  # fmt: skip


def test_no_value_has_no_mean(tmp_path):
    statistics = RoleStatistics()
    with open_checkpoint(write_model(tmp_path, {"w": stored(np.empty(0, np.float32))})) as checkpoint:
        for block in checkpoint.blocks():
            statistics.update(block.info.role.type, block.values)
    assert statistics.summary()["other"]["mean"] is None
