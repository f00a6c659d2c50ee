"""``torch.hub`` and the examples of the former guide, offline."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer

from hilm.errors import InputError, NotFound
from hilm.models.resnet_bk import create_resnet_bk_for_hf

ROOT = str(Path(__file__).parent.parent)


def load(name, **options):
    return torch.hub.load(ROOT, name, source="local", **options)


@pytest.mark.parametrize("size", ["1m", "10m", "100m", "1b", "10b"])
def test_every_size_is_an_entry_point(size, caplog):
    with caplog.at_level(logging.WARNING, "hilm.hub"):
        made = load(f"resnet_bk_{size}", device="meta")
    assert made.config.n_seq == {"1m": 512, "10m": 1024, "100m": 2048, "1b": 4096, "10b": 8192}[size]
    assert f"randomly initialised ResNet-BK {size.upper()}" in caplog.text


def test_the_documented_custom_model():
    with torch.device("meta"):
        made = load("resnet_bk_custom", d_model=512, n_layers=12, use_birman_schwinger=True)
    assert (made.config.d_model, made.config.n_layers, made.config.use_birman_schwinger) == (512, 12, True)


def test_documented_inference():
    made = load("resnet_bk_1m")
    input_ids = torch.randint(0, 30000, (1, 128))
    assert made(input_ids).logits.shape == (1, 128, 30000)


def test_pretrained_never_returns_random_weights(tmp_path):
    with pytest.raises(NotFound, match="resnet-bk/resnet-bk-1b") as caught:
        load("resnet_bk_1b", pretrained=True)
    assert "repo_id" in caught.value.hint
    create_resnet_bk_for_hf("1M", n_layers=3, vocab_size=50).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="n_layers"):
        load("resnet_bk_1m", pretrained=True, repo_id=str(tmp_path))


def test_pretrained_loads_what_is_there(tmp_path):
    made = create_resnet_bk_for_hf("1M", vocab_size=50)
    made.save_pretrained(tmp_path)
    loaded = load("resnet_bk_1m", pretrained=True, repo_id=str(tmp_path))
    assert torch.equal(loaded.lm_head.weight, made.lm_head.weight)
    with pytest.raises(InputError, match="bump_gain"):
        load("resnet_bk_1m", pretrained=True, repo_id=str(tmp_path), use_prime_bump=True)


def test_documented_use_with_transformers(tmp_path):
    tokenizer = ByT5Tokenizer()
    create_resnet_bk_for_hf("1M", tokenizer=tokenizer).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = tokenizer("The future of AI is", return_tensors="pt")
    outputs = model.generate(**inputs, max_length=50)
    assert outputs.shape[1] <= 50
    assert tokenizer.decode(outputs[0]).startswith("The future of AI is")
