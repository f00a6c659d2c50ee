from __future__ import annotations

import json

import pytest
import yaml

from hilm.cli.main import main
from tests.training.models import rows_for, write_models, write_rows

pytestmark = pytest.mark.filterwarnings(
    # transformers 5.23 calls its own deprecated name when PEFT enables gradients of inputs
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("fitting"))
    write_rows(folder / "rows.jsonl", rows_for("sft"))
    document = {
        "model": {"path": "llama"}, "data": {"path": "rows.jsonl"}, "out": "run",
        "train": {"steps": 2, "batch_size": 8, "max_length": 64},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture
def hilm(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)

    def run(*words):
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_from_the_plan_to_the_merged_model(hilm, folder):
    code, out, err = hilm("fit", "sft", "config.yaml", "peft.kind=lora", "--dry-run")
    assert code == 0, err
    assert "E-BASE-PATH" in out
    assert "~memory" in out
    assert not (folder / "run").exists()
    code, out, err = hilm("fit", "sft", "config.yaml", "peft.kind=lora")
    assert code == 0, err
    assert "[E-BASE-PATH]" in err
    assert "parent" in out
    assert "llama: fine-tune" in out
    code, out, _ = hilm("finish", "run", "--json")
    assert code == 0
    assert json.loads(out).keys() >= {"output", "metrics", "parent", "relation", "p_value"}
    code, out, _ = hilm("merge", "run/adapter", "merged", "--base", "llama")
    assert code == 0
    assert (folder / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "code", "said", "hint"),
    [
        (["sgt", "config.yaml"], 2, "sgt", "hilm fit --help"),
        (["sft", "absent.yaml"], 2, "absent.yaml", "YAML"),
        (["sft", "config.yaml", "train.stepz=1"], 2, "train.stepz", "train.steps"),
        (["sft", "config.yaml", "train.precision=fp16"], 2, "E-FP16-CPU", "bf16"),
        (["dpo", "config.yaml"], 2, "dpo needs the columns chosen + rejected", "columns"),
        (["sft", "config.yaml", "model.path=t5"], 2, "source, target", "data.columns"),
        (["dpo", "config.yaml", "model.path=t5"], 2, "E-TASKTYPE", "sft does"),
        (["sft", "config.yaml", "peft.kind=lora", "peft.targets=[qproj]"], 2, "E-TARGET", "q_proj"),
        (["sft", "config.yaml", "track.to=[no_such]"], 4, "E-TRACK", "pip install"),
        (["sft", "config.yaml", "model.path=acme/absent"], 5, "acme/absent", "network"),
    ],
)
def test_bad_input(hilm, words, code, said, hint):
    got, out, err = hilm("fit", *words)
    assert (got, out) == (code, "")
    assert said in err
    assert hint in err.partition("hint:")[2]


def test_a_dry_run_with_errors_exits_2(hilm):
    code, out, _ = hilm("fit", "sft", "config.yaml", "train.precision=fp16", "--dry-run", "--json")
    assert code == 2
    assert "E-FP16-CPU" in {found["id"] for found in json.loads(out)["findings"]}


def test_what_is_no_run_and_no_adapter(hilm):
    assert hilm("finish", "llama")[0] == 2
    assert hilm("merge", "llama", "out")[0] == 2
