from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import InputError, UsageError
from hilm.training.config import FitConfig, from_document, load_config, to_document

LEAST = {"model": {"path": "m"}, "data": {"path": "d.csv"}, "out": "r"}


def test_three_formats_say_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "model: {path: m}\ndata: {path: d.csv}\nout: r\ntrain: {learning_rate: 2e-5}\n"
    )
    (tmp_path / "a.json").write_text(json.dumps(LEAST | {"train": {"learning_rate": 2e-5}}))
    (tmp_path / "a.toml").write_text(
        'out = "r"\n[model]\npath = "m"\n[data]\npath = "d.csv"\n[train]\nlearning_rate = 2e-5\n'
    )
    configs = [load_config(tmp_path / f"a.{suffix}") for suffix in ("yaml", "json", "toml")]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].train.learning_rate == 2e-5


def test_overrides_reach_inside(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {path: m}\ndata: {path: d.csv}\nout: r\n")
    words = ["train.learning_rate=1e-4", "peft.kind=lora", "peft.targets=[q_proj, v_proj]", "method.beta=0.1"]
    config = load_config(tmp_path / "a.yaml", words)
    assert (config.train.learning_rate, config.peft.kind) == (1e-4, "lora")
    assert config.peft.targets == ("q_proj", "v_proj")
    assert config.method == {"beta": 0.1}


@pytest.mark.parametrize(
    ("document", "said", "hint"),
    [
        ({"trian": {}}, "there is no key trian", "did you mean train?"),
        ({"train": {"learning_rat": 1}}, "train.learning_rat", "train.learning_rate"),
        ({"train": {"steps": "many"}}, "train.steps is 'many'", "int or null"),
        ({"train": {"batch_size": True}}, "train.batch_size is True", "int"),
        ({"train": {"batch_size": 0}}, "train.batch_size is 0", "1 or more"),
        ({"train": {"precision": "fp8"}}, "train.precision is 'fp8'", "fp32, bf16, fp16"),
        ({"peft": {"bits": 3}}, "peft.bits is 3", "4, 8"),
        ({"model": "gpt2"}, "model is 'gpt2'", "keys of its own"),
        ({"model": {}}, "there is no model.path", "docs/fit.md"),
        ({"publish": {"enabled": True}}, "there is no publish.repo", "owner/name"),
    ],
)
def test_slips_are_named(document, said, hint):
    with pytest.raises(UsageError) as caught:
        from_document(LEAST | document)
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["{", "- a list", "", "a: [", "\x00"])
def test_what_is_no_configuration(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError):
        load_config(tmp_path / "a.yaml")


def test_no_file_and_no_override(tmp_path):
    with pytest.raises(InputError):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "a.yaml").write_text("model: {path: m}\ndata: {path: d.csv}\nout: r\n")
    with pytest.raises(UsageError, match="no override"):
        load_config(tmp_path / "a.yaml", ["train.steps"])


@given(
    st.sampled_from(["full", "lora", "qlora", "prefix", "prompt"]),
    st.integers(1, 1000),
    st.floats(1e-9, 1, allow_nan=False),
)
def test_documents_come_back(kind, steps, rate):
    config = from_document(LEAST | {"peft": {"kind": kind}, "train": {"steps": steps, "learning_rate": rate}})
    assert isinstance(config, FitConfig)
    assert from_document(to_document(config)) == config


def test_a_revision_is_part_of_the_address():
    model = from_document(LEAST | {"model": {"path": "acme/x", "revision": "abc"}}).model
    assert model.address == "hf://acme/x@abc"
    assert from_document(LEAST).model.address == "m"


def test_prompts_learn_faster():
    rates = {
        kind: from_document(LEAST | {"peft": {"kind": kind}}).learning_rate
        for kind in ("full", "lora", "prompt")
    }
    assert rates == {"full": 2e-5, "lora": 2e-4, "prompt": 0.3}
