from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from hilm.errors import InputError, VerificationError
from hilm.store import Store
from hilm.training import finish, fit
from hilm.training.config import from_document
from tests.training.models import llama


@pytest.mark.parametrize("kind", ["full", "lora", "prompt"])
def test_a_wrong_base_is_found(document, models, tmp_path, kind):
    base = tmp_path / "base"
    shutil.copytree(models / "llama", base)
    made = document("sft", kind, model={"path": str(base)})
    fit("sft", from_document(made), store=Store(tmp_path / "store"))
    torch.manual_seed(99)
    llama().save_pretrained(base)  # another model takes its place
    with pytest.raises(VerificationError, match="is declared to come from base"):
        finish(tmp_path / "run", store=Store(tmp_path / "store"))
    report = json.loads((tmp_path / "run" / "report" / "lineage.json").read_text())
    assert report["confirmed"] is False
    assert json.loads((tmp_path / "run" / "run.json").read_text())["outcome"] == "unconfirmed"


def test_roles_that_were_not_trained_are_untouched(configure, tmp_path):
    fit("sft", configure("sft", "lora"), store=Store(tmp_path / "store"))
    roles = json.loads((tmp_path / "run" / "report" / "difference.json").read_text())["roles"]
    assert roles["attention"]["changed"] == 4
    assert roles["attention"]["rank"] <= 4
    assert roles["mlp"]["changed"] == roles["embedding"]["changed"] == 0
    assert roles["mlp"]["relative_change"] == 0


def test_a_frozen_tensor_that_changed_is_found(configure, tmp_path):
    fit("sft", configure("sft", "lora"), store=Store(tmp_path / "store"))
    merged = tmp_path / "run" / "merged"
    model = transformers.AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-7
    model.save_pretrained(merged)
    with pytest.raises(VerificationError, match=r"model.norm.weight was frozen"):
        finish(tmp_path / "run", store=Store(tmp_path / "store"))


def test_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is no run"):
        finish(tmp_path)
