from __future__ import annotations

import numpy as np
import pytest

from hilm.reel.distortion import Distortion, mean_error
from hilm.weights.dtypes import DTYPES


@pytest.mark.parametrize(("name", "kind"), [("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2")])
def test_errors_by_definition_whatever_the_parts(name, kind):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(1000).astype(kind)
    found = (truth + 0.1 * rng.standard_normal(1000)).astype(kind)
    whole, parts = Distortion(), Distortion()
    whole.add(found.view(np.uint8), truth.view(np.uint8), DTYPES[name])
    for part in (slice(0, 1), slice(1, 700), slice(700, 1000)):
        parts.add(found[part].view(np.uint8), truth[part].view(np.uint8), DTYPES[name])
    assert parts.error == whole.error
    a, b = found.astype(float), truth.astype(float)
    assert whole.error["nmse"] == pytest.approx(np.square(a - b).sum() / np.square(b).sum(), rel=1e-12)
    assert whole.error["max_abs"] == np.abs(a - b).max()
    assert whole.error["cosine"] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), rel=1e-12)


def test_weights_that_all_became_zero_point_nowhere():
    distortion = Distortion()
    distortion.add(np.zeros(8, np.uint8), np.array([1, 2], "<f4").view(np.uint8), DTYPES["F32"])
    assert distortion.error == {"nmse": 1.0, "max_abs": 2.0, "cosine": 0.0}


def test_the_mean_counts_weights_once():
    entry = {"shape": [10, 10], "error": {"nmse": 0.25, "max_abs": 1.0, "cosine": 1.0}}
    other = {"shape": [300], "error": {**entry["error"], "nmse": 0.01}}
    assert mean_error([entry, other, {"shape": [7]}, {**entry, "alias_of": "x"}]) == pytest.approx(28 / 400)
    assert mean_error([{"shape": [7]}]) is None
