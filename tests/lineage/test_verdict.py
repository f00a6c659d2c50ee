from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.lineage.statistics import Null
from hilm.lineage.verdict import Evidence, Side, verdict

SHAPES = {(64, 64): 24, (256, 64): 6, (64, 256): 6}
A = Side("left", parameters=1000, rounded=0.0, width=64, vocabulary=1000, shapes=SHAPES, zeros=0.0)
B = replace(A, name="right")
UNRELATED = Evidence(A, B, sketch=0.01, gram=0.03)
RELATED = Evidence(A, B, sketch=0.97, gram=0.9)
TURNED = Evidence(A, B, sketch=0.0, direct=0.01, units=0.95, units_z=40.0, controls=30)


def other(evidence, **changes):
    return replace(evidence, b=replace(evidence.b, **changes))


CASES = [
    (replace(RELATED, a=replace(A, identical=1.0), b=replace(B, identical=1.0)), "identical"),
    (replace(RELATED, a=replace(A, identical=1.0), b=replace(B, identical=1.0, parameters=1100)), "subset"),
    (replace(RELATED, a=replace(A, identical=0.8), b=replace(B, identical=1.0)), "subset"),
    (replace(RELATED, a=replace(A, rounded=1.0), b=replace(B, rounded=1.0)), "dtype-cast"),
    (replace(RELATED, cast="F16", casted="b"), "dtype-cast"),
    (other(RELATED, bits=4, group=128), "quantized"),
    (other(RELATED, zeros=0.5), "pruned"),
    (other(RELATED, zeros=0.5, bits=8, group=0), "quantized"),
    (TURNED, "permuted"),
    (other(TURNED, vocabulary=1064), "permuted"),
    (other(TURNED, width=48), "resized"),
    (other(RELATED, shapes={(64, 64): 20, (256, 64): 5, (64, 256): 5}), "resized"),
    (RELATED, "fine-tune"),
    (replace(RELATED, sketch=0.8, gram=0.6), "fine-tune"),
    (replace(RELATED, sketch=0.8, gram=0.4), "shares-ancestor"),
    (replace(TURNED, sketch=0.1, direct=0.4), "shares-ancestor"),
    (UNRELATED, "independent"),
    (Evidence(A, B), "independent"),
    (other(UNRELATED, bits=8), "independent"),
    (other(UNRELATED, zeros=0.5), "independent"),
    (replace(UNRELATED, gram=0.95), "independent"),
]

RESIZED = [
    ({(64, 64): 24, (200, 64): 6, (64, 200): 6}, 0.0, "hidden"),
    (SHAPES | {(96, 96): 20}, 0.0, "graft"),
    (SHAPES | {(16, 64): 1}, 0.0, "hidden"),
    ({(64, 64): 20, (256, 64): 5, (64, 256): 5}, 0.0, "depth"),
    ({(64, 64): 32, (256, 64): 8, (64, 256): 8}, 0.25, "up-scaled"),
    ({(64, 64): 32, (256, 64): 8, (64, 256): 8}, 0.0, "depth"),
    ({(64, 64): 24, (256, 64): 24, (64, 256): 24}, 0.5, "up-cycled"),
]


@pytest.mark.parametrize(("evidence", "relation"), CASES)
def test_relation(evidence, relation):
    result = verdict(evidence)
    assert result.relation == relation
    assert result.sentence
    assert 0 <= result.p_value <= 1
    assert 0 <= result.score <= 1


@pytest.mark.parametrize(("evidence", "relation"), CASES)
def test_which_one_comes_first_does_not_matter(evidence, relation):
    swapped = verdict(replace(evidence, a=evidence.b, b=evidence.a))
    assert (swapped.relation, swapped.p_value) == (relation, verdict(evidence).p_value)


def test_facts_need_no_matrices():
    tiny = verdict(Evidence(replace(A, identical=1.0), replace(B, identical=1.0)))
    assert (tiny.relation, tiny.score, tiny.z, tiny.level) == ("identical", 1.0, 0.0, "established")
    assert tiny.p_value == 2.0**-64


def test_gram_alone_proposes_but_does_not_establish():
    result = verdict(replace(UNRELATED, gram=0.95))
    assert result.level == "weak"
    assert result.z == pytest.approx(17.8)
    assert not result.details["conclusive"]
    assert "common training data" in result.sentence


def test_gram_establishes_with_a_large_enough_null():
    null = Null.of([0.02 + 0.05 * (i / 5000 - 1) for i in range(10_000)])
    assert verdict(replace(UNRELATED, gram=0.95), null=null).relation == "permuted"
    assert verdict(replace(UNRELATED, gram=0.95), n=1000, null=null).relation == "independent"


@pytest.mark.parametrize(("n", "relation"), [(1, "shares-ancestor"), (10**6, "independent")])
def test_the_number_of_candidates_counts(n, relation):
    assert verdict(replace(UNRELATED, sketch=0.18), n).relation == relation


@given(n=st.integers(1, 10**9), sketch=st.floats(-1, 1), gram=st.floats(-1, 1))
def test_a_relation_is_always_established(n, sketch, gram):
    result = verdict(Evidence(A, B, sketch=sketch, gram=gram), n)
    assert (result.relation != "independent") == (result.level == "established")
    assert (result.p_value <= 1e-6) == (result.level == "established")


def test_nothing_found_says_what_would_have_been():
    result = verdict(UNRELATED, 2 * 10**6)
    assert result.sentence == "no relation found between left and right; a cosine of 0.23 would have been"
    assert result.details["conclusive"]
    partial = verdict(replace(UNRELATED, gram=None))
    assert not partial.details["conclusive"]
    assert partial.sentence.endswith("; not everything could be compared")
    assert not verdict(replace(UNRELATED, exhaustive=False)).details["conclusive"]
    assert not verdict(other(UNRELATED, coverage=0.5)).details["conclusive"]


def test_details_of_what_happened():
    quantised = verdict(other(RELATED, bits=4, group=128, zeros=0.4)).details
    assert quantised["quantization"] == {"model": "right", "of": "left", "bits": 4, "group": 128}
    assert quantised["also"] == ["pruned", "fine-tune"]
    assert verdict(other(RELATED, zeros=0.5, two_of_four=0.995)).details["pruning"]["pattern"] == "2:4"
    assert verdict(other(RELATED, zeros=0.5, two_of_four=0.6)).details["pruning"]["pattern"] == "unstructured"
    assert verdict(replace(RELATED, rank=16)).details["adapter_rank"] == 16
    assert "adapter_rank" not in verdict(replace(RELATED, rank=17)).details
    assert verdict(other(RELATED, width=48)).details["changes"] == ["width"]
    for shapes, repeats, change in RESIZED:
        assert verdict(other(RELATED, shapes=shapes, repeats=repeats)).details["changes"] == [change]
    assert verdict(other(RELATED, vocabulary=1064)).details["changes"] == ["vocabulary"]
    assert verdict(replace(TURNED, turn="rotation")).details["turn"] == "rotation"
    assert verdict(replace(RELATED, a=replace(A, identical=0.3))).details["partly_frozen"]


def test_no_sentence_claims_more_than_was_shown():
    assert "which came first is not shown" in verdict(RELATED).sentence
    assert "shares initialisation or an ancestor" in verdict(replace(RELATED, sketch=0.8, gram=0.4)).sentence
    assert (
        "left is right or a near relative, with 50% set to zero"
        in verdict(replace(RELATED, a=replace(A, zeros=0.5))).sentence
    )
    for evidence, _ in CASES:
        assert not {"copied", "stolen", "proven"} & set(verdict(evidence).sentence.split())
