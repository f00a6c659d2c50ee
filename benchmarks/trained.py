"""Two small language models, trained here for about a minute each on the sources of the standard library.

They read bytes. Those of an earlier run are taken as they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHE = Path(tempfile.gettempdir()) / "hilm-trained"
BYTES, CONTEXT, WIDTH, LAYERS, HEADS = 256, 128, 256, 4, 4
BATCH, STEPS, RATE = 8, 300, 1e-3


def make_models() -> dict[str, Path]:
    """A GPT-2 of 3.3 million parameters and a Llama of 3.5 million, in float32, by name."""
    for name, build in (("tiny-gpt2", _gpt2), ("tiny-llama", _llama)):
        if not (CACHE / name / "model.safetensors").is_file():
            torch.manual_seed(0)
            _save(_train(build()), CACHE / name)
    return {name: CACHE / name for name in ("tiny-gpt2", "tiny-llama")}


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=BYTES, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)
    )


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=BYTES,
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
        )
    )


def _train(model: PreTrainedModel) -> PreTrainedModel:
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    text = np.frombuffer(b"".join(path.read_bytes() for path in sources), np.uint8)
    optimizer, rng = torch.optim.AdamW(model.parameters(), RATE), np.random.default_rng(0)
    for _ in range(STEPS):
        starts = rng.integers(len(text) - CONTEXT, size=BATCH)
        batch = torch.from_numpy(np.stack([text[s : s + CONTEXT] for s in starts]).astype(np.int64))
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Write a model, complete or not at all."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    part.replace(folder)
