from __future__ import annotations

import json

import pytest

from hilm import errors
from hilm.ship import build, check, create_model_card, gather
from tests.ship.cards import CONFIG, TENSORS, adapter, good
from tests.tiny import write_model


def test_facts_of_a_run(tmp_path):
    run = tmp_path / "run"
    write_model(run / "model", TENSORS, config=CONFIG)
    manifest = {
        "method": "sft",
        "base": {"id": "org/base"},
        "command": ["hilm", "fit", "sft", "c.yaml"],
        "steps": 3,
    }
    (run / "run.json").write_text(json.dumps(manifest))
    (run / "report").mkdir()
    (run / "report" / "lineage.json").write_text(json.dumps({"relation": "fine-tune", "p_value": 1e-12}))
    facts = gather(run, "me/it", license="mit")
    assert (facts.base_model, facts.relation) == (("org/base",), "finetune")
    assert facts.training == {"method": "sft", "steps": 3}
    assert [(c.value, c.verdict) for c in facts.checks] == [(1e-12, "fine-tune")]
    assert "hilm fit sft c.yaml" in build(facts)


def test_the_authors_card_is_kept(tmp_path):
    folder = good(tmp_path / "it", "me/it", license="gpl-3.0", datasets=("org/texts",), tags=("x",))
    facts = gather(folder, "me/it")
    assert (facts.license, facts.datasets, facts.tags, facts.language) == (
        "gpl-3.0",
        ("org/texts",),
        ("x",),
        ("en",),
    )
    assert build(facts) == (folder / "README.md").read_text()


def test_adapters_name_their_base(tmp_path):
    facts = gather(adapter(tmp_path / "a"), "me/a")
    assert (facts.base_model, facts.relation, facts.library) == (("org/base",), "adapter", "peft")


def test_the_documented_function(tmp_path):
    write_model(tmp_path / "it", TENSORS, config=CONFIG)
    text = create_model_card(
        tmp_path / "it", "me/it", training_info={"epochs": 3, "loss": 2.5}, license="mit"
    )
    assert "| epochs | 3 |" in text
    (tmp_path / "it" / "README.md").write_text(text)
    assert not check(tmp_path / "it", "me/it")


def test_settings_that_are_no_json(tmp_path):
    write_model(tmp_path / "it", TENSORS)
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "it" / "config.json").write_text(text)
        with pytest.raises(errors.InputError, match=r"config\.json"):
            gather(tmp_path / "it", "me/it")
