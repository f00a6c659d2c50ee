"""The Python that was documented, as docs/requirements.md maps it, runs in one namespace and in order."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hilm.errors import MissingExtra
from hilm.models.resnet_bk import create_resnet_bk_for_hf
from hilm.models.resnet_bk.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[3]
SECTION = (ROOT / "docs" / "requirements.md").read_text().partition("## The language model")[2]
ROWS = re.findall(r"^\| `([^`]*)` \| `([^`]*)` \|$", SECTION.partition("\n| promised")[0], re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the Hub would hold, had anything been published."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = train_tokenizer(["The future of AI is open. "] * 9, vocab_size=300)
    tokenizer.save_pretrained(folder / "gpt2")
    small = create_resnet_bk_for_hf("1B", tokenizer=tokenizer, d_model=64, d_ff=64, n_layers=2)
    small.save_pretrained(folder / "resnet-bk" / "resnet-bk-1b")
    create_resnet_bk_for_hf("1M", vocab_size=50_000).save_pretrained(folder / "resnet-bk" / "resnet-bk-1m")
    (folder / "resnet-bk" / "resnet-bk").symlink_to(ROOT)
    return folder


def test_documented_python_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    seen = {}
    for _, line in ROWS:
        if line.startswith("export_to_tensorrt"):
            with pytest.raises(MissingExtra, match="tensorrt"):
                exec(line, seen)
            continue
        exec(line, seen)
        if line.endswith('("100M")'):
            assert seen["model"].num_parameters() == pytest.approx(100e6, rel=0.01)
            seen["model"] = create_resnet_bk_for_hf("1M", vocab_size=50, n_layers=1)
        if "custom" in line:
            config = seen["model"].config
            assert (config.d_model, config.n_layers, config.use_birman_schwinger) == (512, 12, True)
    assert capsys.readouterr().out.startswith("The future of AI is")
    assert seen["outputs"].shape[1] <= 50
    assert seen["logits"].shape == (1, 128, 50_000)
    assert torch.isfinite(seen["logits"]).all()
    assert (folder / "resnet_bk_100m.onnx").exists()


def test_the_table_keeps_the_documented_names():
    assert len(ROWS) == 17
    for documented, here in ROWS:
        words = set(re.findall(r"\w+", documented.replace("src.models.onnx_export", "hilm.ship")))
        words -= {"src", "hf_resnet_bk", "resnet_bk_1b"}
        assert words <= set(re.findall(r"\w+", here)), documented


@pytest.mark.parametrize(("demo", "says"), [("hf", "50 tokens"), ("hub", "logits (1, 128, 30000)")])
def test_a_demonstration_runs_alone(demo, says):
    script = [sys.executable, ROOT / "examples" / "hf_integration_demo.py", "--demo", demo]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert says in done.stdout
    assert "graph" not in done.stdout


def test_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "resnet_bk.md").read_text(), re.DOTALL)
    seen = {}
    for block in blocks:
        exec(compile(block, "resnet_bk.md", "exec"), seen)
    assert len(blocks) == 4
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("run", "student")]
    assert sizes[1] < sizes[0] / 1.5
