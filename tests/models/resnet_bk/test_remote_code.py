from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hilm.models.resnet_bk import ResNetBKConfig, ResNetBKForCausalLM, save_with_code
from tests.models.resnet_bk.tiny import SWITCHES, logits, model, tokens

SOURCE = Path(__file__).parents[3] / "src"
LOAD = """
import sys, torch
if {hidden}:
    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "hilm":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Hidden())
else:
    sys.path.insert(0, {source!r})
    import hilm.models.resnet_bk
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
folder, options = {folder!r}, dict(trust_remote_code=True)
made = AutoModelForCausalLM.from_pretrained(folder, **options)
ids = torch.load(folder + "/ids.pt")
out = made.generate(ids[:, :5], max_new_tokens=4, do_sample=False)
torch.save([made(ids).logits.detach(), out], folder + "/out.pt")
AutoModel.from_pretrained(folder, **options)
AutoModelForSequenceClassification.from_pretrained(folder, **options)
assert ("hilm" in sys.modules) != {hidden}
"""


@pytest.fixture
def folder(tmp_path):
    made = model(**SWITCHES["act"])
    save_with_code(made, tmp_path)
    ids = tokens(2, 40)
    torch.save(ids, tmp_path / "ids.pt")
    return tmp_path


@pytest.mark.parametrize("hidden", [True, False], ids=["without hilm", "beside hilm"])
def test_the_folder_runs_by_itself(folder, hidden, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    code = LOAD.format(hidden=hidden, source=str(SOURCE), folder=str(folder))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
    made = ResNetBKForCausalLM.from_pretrained(folder)
    expected, generated = torch.load(folder / "out.pt")
    torch.testing.assert_close(logits(made, torch.load(folder / "ids.pt")), expected)
    ids = torch.load(folder / "ids.pt")[:, :5]
    assert torch.equal(made.generate(ids, max_new_tokens=4, do_sample=False), generated)


def test_what_the_folder_says(folder):
    config = json.loads((folder / "config.json").read_text())
    files = {path.name for path in folder.iterdir()}
    for target in config["auto_map"].values():
        assert f"{target.partition('.')[0]}.py" in files
    written = [path.read_text() for path in folder.iterdir() if path.suffix in {".json", ".py"}]
    assert not any(str(folder) in text or str(SOURCE) in text for text in written)
    assert not any("from hilm" in text or "import hilm" in text for text in written)


def test_the_model_itself_is_left_alone(tmp_path):
    made = model()
    save_with_code(made, tmp_path)
    assert not hasattr(made.config, "auto_map")


def test_registering_as_transformers_documents_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ResNetBKConfig, "_auto_class", None)
    monkeypatch.setattr(ResNetBKForCausalLM, "_auto_class", None)
    ResNetBKConfig.register_for_auto_class()
    ResNetBKForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    model().save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {
        "AutoConfig",
        "AutoModelForCausalLM",
    }
    assert (tmp_path / "scan.py").exists()
