from __future__ import annotations

import pytest
import torch

from hilm.errors import NotACheckpoint
from hilm.ship.torch_model import cases, cast, evaluating, load_model, longest, sample_inputs


def test_a_folder_comes_back_with_its_head(models, tmp_path):
    models["bert"].save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(models["bert"])
    assert not loaded.training
    assert load_model(loaded) is loaded


@pytest.mark.parametrize("name", ["absent folder", "empty"])
def test_what_holds_no_model(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotACheckpoint):
        load_model(tmp_path / name)


def test_longest_sequences(models):
    assert {name: longest(model) for name, model in models.items()} == {
        "bert": 48, "gpt2": 48, "resnet-bk": None
    }  # fmt: skip


def test_casts_are_copies(models):
    doubled = cast(models["resnet-bk"], "float64")
    assert {weight.dtype for weight in doubled.parameters()} == {torch.float64}
    assert doubled.config.core_dtype == "float64"
    assert {weight.dtype for weight in models["resnet-bk"].parameters()} == {torch.float32}
    assert cast(doubled, "float64") is doubled


def test_evaluating_gives_back_the_mode(models):
    model = models["gpt2"]
    assert model.training
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training


def test_inputs_are_within_the_model(models):
    inputs = sample_inputs(models["bert"], 3, 12)
    assert inputs["input_ids"].shape == (3, 12)
    assert int(inputs["input_ids"].max()) < 101
    assert inputs["attention_mask"].sum(1).tolist() == [8, 12, 12]
    assert [case["input_ids"].shape[1] for case in cases(models["bert"], None, None)] == [1, 2, 17, 47, 48]
    assert [case["input_ids"].shape for case in cases(models["bert"], (5,), None)] == [(1, 5)]
