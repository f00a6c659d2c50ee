"""Whole runs: from a configuration to a result whose parent its weights confirm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from hilm.errors import Cancelled, InputError, StorageError, UsageError
from hilm.store import Store
from hilm.training import finish, fit
from hilm.training.config import from_document
from hilm.training.record import Run


def run_child(path, *words, **options):
    """Run hilm fit in a process of its own."""
    code = "import sys; from hilm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "fit", "pretrain", str(path), *words, "--json"], **options
    )


@pytest.fixture
def written(document, tmp_path):
    """Write a run's configuration to a file."""

    def write(*args, **sections):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document(*args, **sections)))
        return path

    return write


@pytest.mark.parametrize("kind", ["full", "lora", "qlora", "prompt"])
def test_the_evidence(configure, tmp_path, models, kind):
    store = Store(tmp_path / "store")
    config = configure("sft", kind, model={"id": "acme/tiny"}, publish={"license": "mit", "language": ["en"]})
    document = fit("sft", config, store=store)
    run = tmp_path / "run"
    assert document["parent"] == "acme/tiny"
    assert document["relation"] == ("subset" if kind == "prompt" else "fine-tune")
    assert document["p_value"] < 1e-6
    assert document["parity"]["max_abs"] <= 1e-5
    assert document["metrics"]["loss"]["first"] > document["metrics"]["loss"]["last"]
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert names >= {
        "config.yaml", "run.json", "events.jsonl", "metrics.csv", "loss.png", "difference.png",
        "card/README.md", "report/difference.json", "report/lineage.json", "report/parity.json",
    }  # fmt: skip
    card = (run / "card" / "README.md").read_text()
    assert "license: mit" in card
    assert "base_model: acme/tiny" in card
    assert str(tmp_path) not in card + (run / "run.json").read_text()
    assert str(models) not in card + (run / "run.json").read_text()
    if kind != "full":
        assert (
            json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
            == "acme/tiny"
        )
    for name in ("loss.png", "difference.png"):
        assert len(set(Image.open(run / name).convert("L").tobytes())) > 10
    if kind in {"full", "lora"}:
        result = run / ("model" if kind == "full" else "merged")
        best = store.search(str(result), top_k=1)["matches"][0]
        assert best["uri"] == str(models / "llama")
        assert best["relation"] == "fine-tune"


def test_a_second_finish_changes_nothing(configure, tmp_path):
    fit("sft", configure("sft", "lora"), store=Store(tmp_path / "store"))

    def state():
        return {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}

    before = state()
    finish(tmp_path / "run", store=Store(tmp_path / "store"))
    assert state() == before


def test_a_dry_run_writes_nothing(configure, tmp_path):
    document = fit("sft", configure("sft"), dry_run=True)
    assert document["plan"]["row"]["trainable"] == 107_200
    assert {finding["id"] for finding in document["findings"]} >= {"E-BASE-PATH"}
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(configure, tmp_path):
    fit("sft", configure("sft"), store=Store(tmp_path / "store"))
    with pytest.raises(UsageError, match="holds a run already"):
        fit("sft", configure("sft"), store=Store(tmp_path / "store"))


def test_killed_and_resumed_is_the_same(written, tmp_path):
    train = {"steps": 12, "save_every": 2, "log_every": 1, "learning_rate": 1e-3}
    whole = from_document(
        yaml.safe_load(written("pretrain", train=train, out=str(tmp_path / "whole")).read_text())
    )
    fit("pretrain", whole, store=Store(tmp_path / "store"))
    path = written("pretrain", train=train)
    child = run_child(path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not (tmp_path / "run" / "checkpoint-4" / "complete.json").exists():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    torn = tmp_path / "run" / "checkpoint-99"
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    config = from_document(yaml.safe_load(path.read_text()))
    fit("pretrain", config, resume=True, store=Store(tmp_path / "store2"))
    one, two = Run.open(tmp_path / "whole"), Run.open(tmp_path / "run")
    assert one.facts["trained_sha256"] == two.facts["trained_sha256"]
    losses = [[e.get("loss") for e in run.events() if "loss" in e] for run in (one, two)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


def test_other_settings_are_not_resumed(configure, tmp_path):
    fit("sft", configure("sft"), store=Store(tmp_path / "store"))
    with pytest.raises(InputError, match=r"E-RESUME.*config.train.learning_rate"):
        fit("sft", configure("sft", train={"learning_rate": 1.0}), resume=True)
    with pytest.raises(InputError, match=r"E-RESUME.*data.rows_sha256"):
        fit("sft", configure("sft", rows=[{"text": "other"}] * 8), resume=True)
    fit("sft", configure("sft"), resume=True, store=Store(tmp_path / "store"))


def test_two_processes_are_one(configure, tmp_path):
    train = {"steps": 4, "log_every": 1, "learning_rate": 1e-3}
    fit("sft", configure("sft", train=train, out=str(tmp_path / "alone")), store=Store(tmp_path / "store"))
    document = fit("sft", configure("sft", train=train, launch={"nproc": 2}), store=Store(tmp_path / "store"))
    assert document["relation"] == "fine-tune"
    losses = [[e["loss"] for e in Run.open(tmp_path / n).events() if "loss" in e] for n in ("alone", "run")]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-5
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("alone", "run")]
    assert max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0]) <= 1e-5
    assert Run.open(tmp_path / "run").facts["world_size"] == 2


def test_interrupted_it_saves(configure, tmp_path):
    config = configure("pretrain", train={"steps": 50, "log_every": 1, "save_every": 1000})

    def stop(done, total, label):
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Cancelled, match=r"interrupted at step [34]"):
        fit("pretrain", config, progress=stop, store=Store(tmp_path / "store"))
    assert next(Run(tmp_path / "run").checkpoints())[0] in {3, 4}


def test_a_disk_that_fills_up(configure, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="No space left"):
        fit("pretrain", configure("pretrain", train={"save_every": 1}), store=Store(tmp_path / "store"))
