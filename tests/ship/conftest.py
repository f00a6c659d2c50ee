from __future__ import annotations

import pytest
import torch
import transformers

from hilm.models.resnet_bk import ResNetBKConfig, ResNetBKForCausalLM
from hilm.ship import export_to_onnx


def bert():
    config = transformers.BertConfig(
        vocab_size=101, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=48,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=101, n_embd=16, n_layer=1, n_head=2, n_positions=48, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def resnet_bk():
    return ResNetBKForCausalLM(
        ResNetBKConfig(vocab_size=101, d_model=16, n_layers=1, num_experts=2, bk_channels=4)
    )


MAKERS = {"bert": bert, "gpt2": gpt2, "resnet-bk": resnet_bk}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models():
    """One tiny model of each kind, with weights large enough that errors show, in train mode."""
    made = {}
    for name, make in MAKERS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            made[name] = make().train()
        with torch.no_grad():
            for weight in made[name].parameters():
                weight.mul_(3 if weight.ndim > 1 else 1)
    return made


@pytest.fixture(scope="session")
def exported(models, tmp_path_factory):
    """Name → (report, path); each is exported once."""
    folder, done = tmp_path_factory.mktemp("onnx"), {}

    def export(name):
        if name not in done:
            path = folder / f"{name}.onnx"
            done[name] = export_to_onnx(models[name], path, max_length=300), path
        return done[name]

    return export
