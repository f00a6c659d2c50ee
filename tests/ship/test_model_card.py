from __future__ import annotations

import json

import numpy as np
import pytest

import hilm
from hilm import errors
from hilm.cli.main import main
from hilm.ship import CardFacts, build, check, check_base, create_model_card, diff, front_matter, gather
from hilm.ship.model_card import Check, Metric
from tests.ship.cards import CONFIG, TENSORS, adapter, good
from tests.tiny import bert_like, write_model

FACTS = CardFacts(
    "me/it",
    license="mit",
    base_model=("org/base",),
    relation="finetune",
    library="transformers",
    architecture="LlamaForCausalLM",
    roles={"mlp": 1000, "attention": 24},
    dtypes=("F32", "BF16"),
    training={"method": "sft", "loss": 0.5},
    metrics=(Metric("text-generation", "org/texts", "accuracy", 0.25, "sha256:ab"),),
    checks=(Check("merge", 3e-7, 1e-5, "pass"),),
    command="hilm fit sft run.yaml",
    run="sha256:cd",
)


def test_the_same_facts_give_the_same_bytes():
    text = build(FACTS)
    assert text == build(FACTS)
    fields, body = front_matter.split(text)
    assert list(fields) == sorted(fields)
    assert fields["base_model"] == "org/base"
    for words in (
        "1,024 parameters, stored as BF16, F32.", "| merge | 3e-07 | 1e-05 | pass |",  "| mlp | 1,000 |",
        'AutoModelForCausalLM.from_pretrained("me/it")', "hilm fit sft run.yaml", "sha256:cd",
        "| method | sft |",
    ):  # fmt: skip
        assert words in body


def test_what_is_not_known_is_left_out():
    fields, body = front_matter.split(build(CardFacts("me/it", license="mit")))
    assert fields == {"license": "mit"}
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# it",
        "## Use",
        "## Limitations",
    ]
    assert "Not documented by the author." in body


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


def test_differences_between_cards():
    other = build(CardFacts("me/it", license="gpl-3.0"))
    changed = diff(build(CardFacts("me/it", license="mit", language=("en",))), other)
    assert changed == {"license": ("mit", "gpl-3.0"), "language": (["en"], None)}
    assert not diff(other, other)


@pytest.mark.parametrize(
    "front", ["", "a: 1\na: 2", "[1]", "a: &x 1\nb: *x", "a: [" * 3000, "1: 2", "a: !!python/name:os.system"]
)
def test_front_matter_that_is_refused(front):
    with pytest.raises(errors.InputError):
        front_matter.split(f"---\n{front}\n---\n")
    with pytest.raises(errors.InputError):
        front_matter.split("no front matter")


def test_settings_that_are_no_json(tmp_path):
    write_model(tmp_path / "it", TENSORS)
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "it" / "config.json").write_text(text)
        with pytest.raises(errors.InputError, match=r"config\.json"):
            gather(tmp_path / "it", "me/it")


@pytest.fixture
def family(tmp_path):
    """A store with a base and a stranger; a fine-tune that declares the one or the other."""
    base = bert_like(1, layers=2)
    noise = np.random.default_rng(0)
    tuned = {n: v + 0.001 * noise.standard_normal(v.shape, np.float32) for n, v in base.items()}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "stranger", bert_like(2, layers=2))
    store = hilm.Store(tmp_path / "store")
    store.index([str(tmp_path / "base"), str(tmp_path / "stranger")])

    def declare(name):
        return good(tmp_path / "tuned", "me/tuned", tensors=tuned, config=None, base_model=(name,))

    return declare, tmp_path / "store"


def test_a_declared_base_is_compared_with_the_weights(family):
    declare, store = family
    (found,) = check_base(declare("org/base"), store)
    assert (found["agrees"], found["relation"]) == (True, "fine-tune")
    (found,) = check_base(declare("org/stranger"), store)
    assert (found["agrees"], found["relation"]) == (False, "independent")
    (found,) = check_base(declare("org/elsewhere"), store)
    assert found["agrees"] is None


def test_a_false_base_ends_with_3(family, capsys):
    declare, store = family
    assert main(["card", "check", str(declare("org/base")), "--lineage", str(store)]) == 0
    assert main(["card", "check", str(declare("org/stranger")), "--lineage", str(store), "--json"]) == 3
    assert "CONTRADICTED" not in capsys.readouterr().err
