from __future__ import annotations

from hilm.ship import CardFacts, build, diff, front_matter
from hilm.ship.model_card import Check, Metric

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


def test_differences_between_cards():
    other = build(CardFacts("me/it", license="gpl-3.0"))
    changed = diff(build(CardFacts("me/it", license="mit", language=("en",))), other)
    assert changed == {"license": ("mit", "gpl-3.0"), "language": (["en"], None)}
    assert not diff(other, other)
