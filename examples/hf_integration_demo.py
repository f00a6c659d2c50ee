"""ResNet-BK in transformers and torch.hub, and its way out. It is fresh: no trained weights are published.

python examples/hf_integration_demo.py [--demo all|hf|hub|onnx|tensorrt|deploy]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer

from hilm.errors import MissingExtra
from hilm.models.resnet_bk import create_resnet_bk_for_hf, describe
from hilm.ship import export_model_for_deployment, export_to_onnx, export_to_tensorrt

parser = argparse.ArgumentParser()
parser.add_argument("--demo", choices=("all", "hf", "hub", "onnx", "tensorrt", "deploy"), default="all")
demo, tokenizer = parser.parse_args().demo, ByT5Tokenizer()
with tempfile.TemporaryDirectory() as folder:
    if demo in {"all", "hf"}:  # save it, load it by its folder alone, let it write; its state does not grow
        create_resnet_bk_for_hf("1M", tokenizer=tokenizer).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        inputs = tokenizer("The future of AI is", add_special_tokens=False, return_tensors="pt")
        outputs = model.generate(**inputs, max_length=50, return_dict_in_generate=True)
        print(f"1M: {describe(model.config).parameters:,} parameters with a vocabulary of bytes")
        print(f"{outputs.sequences.shape[1]} tokens, {outputs.past_key_values.state_bytes:,} bytes of state")
    if demo in {"all", "hub"}:  # any configuration, from this repository
        root = str(Path(__file__).parent.parent)
        model = torch.hub.load(root, "resnet_bk_custom", source="local", d_model=64, n_layers=2)
        print(f"logits {tuple(model(torch.randint(0, 30000, (1, 128))).logits.shape)}")
    model, graph = create_resnet_bk_for_hf("1M", tokenizer=tokenizer, n_layers=1), Path(folder, "model.onnx")
    if demo in {"all", "onnx", "tensorrt"}:
        print(f"graph: at most {export_to_onnx(model, graph, max_length=128).max_abs_error:.1g} from PyTorch")
    if demo in {"all", "tensorrt"}:
        try:
            print("engine agrees:", export_to_tensorrt(graph, Path(folder, "model.trt"), fp16=True).ok)
        except MissingExtra as error:
            print(f"no engine: {error}; {error.hint}")
    if demo in {"all", "deploy"}:
        out = Path(folder, "out")
        done = export_model_for_deployment(model, out, tokenizer=tokenizer, max_length=128)
        print("deployment:", *done.exports)
