"""Model folders with a good card, and ways to spoil one."""

from __future__ import annotations

import json

import numpy as np

from hilm.ship import build, check, gather
from tests.tiny import write_model

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40}
TENSORS = {
    "model.embed_tokens.weight": np.linspace(-1, 1, 320, dtype=np.float32).reshape(40, 8),
    "model.layers.0.self_attn.q_proj.weight": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8),
    "model.layers.0.mlp.up_proj.weight": np.linspace(-2, 1, 128, dtype=np.float32).reshape(16, 8),
}
ADAPTER = {"base_model_name_or_path": "org/base", "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}


def good(folder, repo_id="org/model", *, shards=1, config=CONFIG, tensors=None, **author):
    """A folder whose card is right."""
    write_model(folder, tensors or TENSORS, shards=shards, config=config)
    author = {"license": "apache-2.0", "language": ("en",), **author}
    (folder / "README.md").write_text(build(gather(folder, repo_id, **author)))
    return folder


def adapter(folder, repo_id="org/adapter", **author):
    """A LoRA adapter whose card is right."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {f"{prefix}.lora_A.weight": np.ones((2, 8), np.float32)}
    write_model(folder, weights | {f"{prefix}.lora_B.weight": np.ones((8, 2), np.float32)})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (folder / "README.md").write_text(build(gather(folder, repo_id, license="mit", **author)))
    return folder


def errors(folder, repo_id="org/model", **options):
    """Rules of which a card breaks one badly."""
    return {found.rule for found in check(folder, repo_id, **options) if found.level == "error"}


def front(before, after):
    """Replace words of the card."""

    def plant(folder):
        path = folder / "README.md"
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))

    return plant


def add(line):
    return front("license: apache-2.0\n", f"license: apache-2.0\n{line}\n")


def body(text):
    return front("## Limitations", f"{text}\n\n## Limitations")


def corrupt(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + np.float32(np.nan).tobytes())
