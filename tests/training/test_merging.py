from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers

from hilm.errors import InputError, UsageError
from hilm.store import Store
from hilm.training import fit, merge


@pytest.fixture
def adapter(configure, tmp_path):
    fit("sft", configure("sft", "lora", train={"learning_rate": 1e-2}), store=Store(tmp_path / "store"))
    return tmp_path / "run" / "adapter"


def test_merged_is_the_same_function(adapter, models, tmp_path):
    document = merge(adapter, tmp_path / "merged", base=models / "llama")
    assert document["parameters"] == 107_200
    base = transformers.AutoModelForCausalLM.from_pretrained(models / "llama")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = base(ids).logits
        apart = peft.PeftModel.from_pretrained(base, adapter).eval()(ids).logits
        whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert float((apart - whole).abs().max()) <= 1e-5
    assert float((plain - whole).abs().max()) > 1e-4


def test_the_base_it_names_is_taken(adapter, tmp_path, models):
    assert merge(adapter, tmp_path / "merged")["base"] == str(models / "llama")
    with pytest.raises(UsageError, match="exists"):
        merge(adapter, tmp_path / "merged")


def test_quantised_bases_are_refused(adapter, tmp_path, models):
    base = tmp_path / "quantised"
    shutil.copytree(models / "llama", base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is quantised"):
        merge(adapter, tmp_path / "merged", base=base)


def test_what_cannot_be_merged(tmp_path):
    with pytest.raises(InputError, match="is no adapter"):
        merge(tmp_path, tmp_path / "out")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        merge(tmp_path, tmp_path / "out")
