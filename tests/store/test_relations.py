from __future__ import annotations

import pytest

from hilm.errors import InputError, NotACheckpoint, OfflineError, UnknownModel
from hilm.store import diff
from tests.store.conftest import tiny


def test_a_checkpoint_and_itself_are_identical(house):
    document = diff(house / "base", house / "base")
    assert document["relation"] == "identical"
    assert document["p_value"] is not None
    assert {t["a"] for t in document["tensors"] if t["identical"]} == set(tiny(1))
    assert document["only_a"] == document["only_b"] == []


def test_a_fine_tune_is_told_from_a_stranger(house):
    related, strange = diff(house / "base", house / "tuned"), diff(house / "base", house / "stranger-0")
    assert (related["relation"], strange["relation"]) == ("fine-tune", "independent")
    assert related["p_value"] < 1e-6 < strange["p_value"]
    assert related["sentence"]
    assert not any(t["identical"] for t in related["tensors"])


def test_names_of_a_store_are_looked_up(house, store):
    store.index([house / "base"], name="mine")
    seen = []
    document = diff("mine", house / "tuned", store=store, progress=lambda *args: seen.append(args))
    assert document["relation"] == "fine-tune"
    assert seen[-1][0] == seen[-1][1]
    with pytest.raises(UnknownModel):
        diff("your model", house / "tuned", store=store)
    with pytest.raises(OfflineError):
        diff("org/yours", house / "tuned", store=store)
    with pytest.raises(NotACheckpoint):
        diff("mine", house / "tuned")
    with pytest.raises(InputError):
        diff("./mine", house / "tuned")
