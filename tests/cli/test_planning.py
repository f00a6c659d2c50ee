from __future__ import annotations

import json

import click
import pytest

from hilm.cli.planning import planned, priced
from hilm.store import plan, plan_hub


def test_a_plan_of_a_model(hilm, house):
    (house / "base" / "config.json").write_text(
        json.dumps({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000})
    )
    ran = hilm(
        "plan", "base", "--batch", "2", "--seq", "64", "--rank", "4", "--targets", "attention", "--json"
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.document == plan("base", batch=2, sequence=64, rank=4, targets=["attention"]) | {
        "model": "base"
    }
    assert ran.document["assumptions"]["checkpointing"] is False
    assert hilm("plan", "base", "--grad-ckpt", "--json").document["assumptions"]["checkpointing"] is True


def test_people_see_what_is_estimated(hilm, house):
    text = click.unstyle(planned(plan("base")))
    assert "no config.json" in text.splitlines()[-1]
    line = next(line for line in text.splitlines() if line.startswith("lora"))
    assert line.split()[-3:] == ["-", "-", "-"]
    assert "~total" in text
    assert hilm("plan", "base").code == 0


def test_a_plan_of_the_hub(hilm):
    document = hilm("plan", "--models", "1000", "--workers", "4", "--json").document
    assert document == plan_hub(1000, workers=4)
    lines = click.unstyle(priced(plan_hub())).splitlines()
    assert lines[0] == "2.2 M models, 64 workers: an estimate"
    assert [line.split()[0] for line in lines[-4:]] == ["listing", "headers", "sample", "everything"]


@pytest.mark.parametrize(
    "words", [[], ["base", "--models", "3"], ["nowhere/at/all"], ["base", "--rank", "0"]]
)
def test_what_makes_no_sense_is_said(hilm, words):
    ran = hilm("plan", *words)
    assert (ran.code, ran.out) == (2, "")
    assert "hint:" in ran.err
