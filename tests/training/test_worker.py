"""Every method with everything that can be trained runs the real libraries, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hilm.errors import TrainingError
from hilm.store.reading import no_progress
from hilm.training.methods import METHODS
from hilm.training.modeling import load_model
from hilm.training.record import Run
from hilm.training.worker import main, train

NAMES = [("llama", name) for name in METHODS] + [("t5", "sft")]
KINDS = ("full", "lora", "qlora4", "qlora8", "prefix", "prompt")
QUICK = {(m, n, k) for m, n in NAMES for k in ("full", "lora")}
QUICK |= {("llama", "sft", kind) for kind in KINDS} | {
    ("llama", "ppo", "qlora4"),
    ("llama", "classify", "qlora4"),
}
CELLS = [
    pytest.param(model, name, kind, marks=[] if (model, name, kind) in QUICK else pytest.mark.slow)
    for model, name in NAMES
    for kind in KINDS
    if not (name == "ppo" and kind in {"prefix", "prompt"})
]


@pytest.fixture
def work(configure):
    """Train, without the checks before and the reports after."""

    def run(name, kind="full", **sections):
        peft = {"kind": kind.rstrip("48"), "bits": int(kind[-1]) if kind[-1] in "48" else 4}
        config = configure(name, **sections | {"peft": peft | sections.get("peft", {})})
        made = Run(Path(config.out))
        made.start(name, config, {})
        return made, train(made, resume=False, progress=no_progress)

    return run


@pytest.mark.parametrize(("model", "name", "kind"), CELLS)
def test_every_cell_trains(work, models, model, name, kind):
    run, facts = work(name, kind, base=model)
    assert (facts["steps"], facts["outcome"]) == (2, "trained")
    assert {e["step"] for e in run.events() if "loss" in e} >= {1, 2}
    files = {path.name for path in run.result.iterdir()}
    assert "training_args.bin" not in files
    if kind == "full":
        before = load_file(models / model / "model.safetensors")
        after = load_file(run.result / "model.safetensors")
        assert any(not torch.equal(before[n], after[n]) for n in before.keys() & after.keys())
    else:
        added = load_file(run.result / "adapter_model.safetensors")
        kinds = {"lora": "lora_", "qlor": "lora_"}.get(kind[:4], "prompt_embeddings")
        heads = ("score", "classifier")
        assert all(kinds in n or any(h in n for h in heads) for n in added)


@pytest.mark.parametrize(
    ("name", "figure", "fits"),
    [
        ("sft", "loss", lambda first, last: last <= 0.5 * first),
        ("dpo", "rewards/accuracies", lambda _, last: last == 1.0),
        ("reward", "accuracy", lambda _, last: last == 1.0),
        ("kto", "loss", lambda first, last: last < 0.9 * first),
        ("classify", "loss", lambda first, last: last <= 0.6 * first),
        ("pretrain", "loss", lambda first, last: last <= 0.6 * first),
    ],
)
def test_recipes_learn(work, name, figure, fits):
    train_keys = {"steps": 40, "learning_rate": 3e-3, "max_length": 32, "log_every": 4}
    _, facts = work(name, train=train_keys)
    found = facts["metrics"][figure]
    assert fits(found["first"], found["last"]), found


def test_resnet_bk_learns_from_scratch_and_carries_its_code(work):
    train_keys = {"steps": 40, "learning_rate": 1e-2, "max_length": 32, "log_every": 4}
    run, facts = work("pretrain", base="resnet_bk", train=train_keys)
    assert facts["metrics"]["loss"]["last"] <= 0.8 * facts["metrics"]["loss"]["first"]
    assert (run.result / "modeling_resnet_bk.py").is_file()
    assert "AutoModelForCausalLM" in json.loads((run.result / "config.json").read_text())["auto_map"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_the_file_that_was_quantised_is_given_back(configure, models):
    config = configure("sft", "qlora")
    model = load_model(config, METHODS["sft"])
    assert model.lm_head.weight.dtype == torch.float32
    assert str(models / "llama" / "model.safetensors") not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_group_methods_do_not_lose_reward(work, name):
    keys = {"steps": 30, "learning_rate": 3e-3, "log_every": 1, "batch_size": 16}
    run, _ = work(name, train=keys, reward={"kind": "keyword", "pattern": "a"})
    rewards = [e["reward"] for e in run.events() if "reward" in e]
    assert sum(rewards[-10:]) > sum(rewards[:10])


def test_accumulated_batches_are_one(work):
    whole, _ = work("pretrain", train={"batch_size": 8, "steps": 3})
    one = load_file(whole.result / "model.safetensors")
    parts, _ = work(
        "pretrain", train={"batch_size": 4, "grad_accum": 2, "steps": 3}, out=str(whole.folder) + "2"
    )
    two = load_file(parts.result / "model.safetensors")
    assert max(float((one[n] - two[n]).abs().max()) for n in one) <= 1e-6


def test_a_loss_that_is_no_number_stops_the_run(work):
    with pytest.raises(TrainingError, match="the loss is no number from step"):
        work("sft", train={"steps": 40, "learning_rate": 1e30})


def test_a_run_that_learns_nothing_says_so(work):
    with pytest.raises(TrainingError, match="no trained value has changed"):
        work("sft", train={"learning_rate": 0.0})


def test_one_process_where_two_are_wanted(configure, monkeypatch):
    config = configure("sft")
    run = Run(Path(config.out))
    run.start("sft", config, {})
    monkeypatch.setenv("HILM_WORLD", "2")
    assert main([config.out]) == 2
    assert (
        "2 processes are wanted and 1 run" in json.loads((run.folder / "error.json").read_text())["message"]
    )
