"""ResNet-BK as a model of transformers and of torch.hub. It is fresh: no trained weights are published.

python examples/hf_integration_demo.py [--demo hf|hub|all]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer

from hilm.models.resnet_bk import create_resnet_bk_for_hf, describe


def hf() -> None:
    """Save a model, load it by its folder alone, let it write; its state does not grow."""
    tokenizer = ByT5Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        create_resnet_bk_for_hf("1M", tokenizer=tokenizer).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("The future of AI is", add_special_tokens=False, return_tensors="pt")
    outputs = model.generate(**inputs, max_length=50, return_dict_in_generate=True)
    print(f"1M: {describe(model.config).parameters:,} parameters with a vocabulary of bytes")
    print(f"{outputs.sequences.shape[1]} tokens, {outputs.past_key_values.state_bytes:,} bytes of state")


def hub() -> None:
    """Make a model of any configuration from this repository."""
    root = str(Path(__file__).parent.parent)
    model = torch.hub.load(root, "resnet_bk_custom", source="local", d_model=64, n_layers=2)
    print(f"logits {tuple(model(torch.randint(0, 30000, (1, 128))).logits.shape)}")


DEMOS = {"hf": (hf,), "hub": (hub,), "all": (hf, hub)}
parser = argparse.ArgumentParser()
parser.add_argument("--demo", choices=DEMOS, default="all")
for demo in DEMOS[parser.parse_args().demo]:
    demo()
