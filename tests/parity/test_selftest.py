from __future__ import annotations

import pytest

from hilm.parity.selftest import selftest, witness
from hilm.parity.verdict import Gates


@pytest.fixture(scope="module")
def small():
    return selftest(witness(layers=3, width=64))


def test_every_fault_is_caught_where_it_was_planted(small):
    # Behind the outlier channels of block 1 the variance of so narrow a model hides the eps of a norm.
    missed = {(catch.fault, catch.expected) for catch in small.catches if not catch.caught}
    assert missed <= {("norm eps x 10", "layer.2 / norm1")}
    assert small.warnings == ()
    planted = {catch.fault for catch in small.catches}
    assert {
        "q and k swapped",
        "GELU tanh for erf",
        "no rotary embedding",
        "slots 0 to T-1",
        "one head zeroed",
        "BGR for RGB",
        "features x 7",
        "buffer not restored",
    } <= planted


def test_clean_variants_are_not_flagged(small):
    clean = [catch for catch in small.catches if catch.fault.startswith("none")]
    assert len(clean) == 6
    assert all(catch.ratio < 1.5 for catch in clean)


def test_a_blind_gate_fails():
    report = selftest(witness(layers=1, width=64), gates=Gates(k=1e9, k_token=1e9), precisions=["float32"])
    assert not report.ok
    missed = {catch.fault for catch in report.catches if not catch.caught}
    assert "output projection zero" in missed


def test_random_weights_are_too_weak_a_witness():
    report = selftest(witness(layers=1, width=64, trained=False), precisions=["bfloat16"])
    assert any("too weak a witness" in warning for warning in report.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_built_in_witness(seed):
    report = selftest(witness(seed=seed))
    assert report.ok
    assert report.document()["planted"] == len(report.catches) > 60
