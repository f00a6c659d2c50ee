"""Whether a run fits into memory and onto the disk, from headers and an empty model."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft

from hilm.parity.memory import free_mb
from hilm.store.memory_plan import plan
from hilm.training.modeling import adapter_config, device
from hilm.training.preflight import Finding, count_tokens, error, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.training.config import FitConfig
    from hilm.training.preflight import Situation

KEPT = 2
"""Checkpoints that are kept; a third is written before the oldest goes."""


def check_memory(s: Situation) -> tuple[FitConfig, dict[str, Any], list[Finding]]:
    """Plan the memory, and decide whether activations are computed again.

    Returns:
        The configuration with that decided, the plan with ``available`` bytes, and findings.
    """
    available = int(2**20 * free_mb(device(s.config)))
    train = s.config.train
    asked = train.activation_checkpointing
    barred = s.config.peft.kind == "prefix" or s.name == "ppo"
    choices = [False] if barred else [False, True] if asked == "auto" else [bool(asked)]
    for choice in choices:
        config = replace(s.config, train=replace(train, activation_checkpointing=choice))
        memory = plan_memory(s, config) | {"available": available}
        if memory["total"] is None or memory["total"] <= available:
            break
    found = []
    if asked == "auto" and choice:
        found.append(Finding("E-MEM", "note", "activations are computed again: they do not fit otherwise"))
    if memory["total"] is not None and memory["total"] > available:
        found.append(
            error(
                "E-MEM",
                f"this takes about {memory['total'] / 2**30:.1f} GiB, {available / 2**30:.1f} are free",
                _cheaper(s, available),
                forcible=True,
            )
        )
    return config, memory, found


def _cheaper(s: Situation, available: int) -> str:
    """The mildest change that fits, as overrides."""
    own, batch, least = s.config.peft.kind, s.config.train.batch_size, s.config.launch.nproc
    milder: list[tuple[Any, int]] = [(own, least), *product(("lora", "qlora"), (batch, least))]
    for kind, size in milder:
        config = replace(
            s.config,
            peft=replace(s.config.peft, kind=kind),
            train=replace(s.config.train, batch_size=size, activation_checkpointing=True),
        )
        if (plan_memory(s, config)["total"] or 0) <= available:
            return f"peft.kind={kind} train.batch_size={size} train.activation_checkpointing=true fits"
    return "a smaller model, or a machine with more memory"


def plan_memory(s: Situation, config: FitConfig) -> dict[str, Any]:
    """The plan's row for a run, and its ``total`` with what this method keeps beside the model, in bytes."""
    peft, train = config.peft, config.train
    planned = plan(
        config.model.address,
        batch=max(1, train.batch_size // config.launch.nproc),
        sequence=min(train.max_length, _longest(s)),
        rank=peft.r,
        checkpointing=train.activation_checkpointing is True,
        bits=16 if train.precision == "bf16" else 32,
        adapter=None if peft.kind == "full" else count_adapter(s, config),
    )
    mixed = "full bf16 mixed" if train.precision == "bf16" else "full fp32"
    name = {"full": mixed, "qlora": "qlora nf4" if peft.bits == 4 else "qlora int8"}.get(peft.kind, "lora")
    row = next(row for row in planned["training"] if row["method"] == name)
    frozen = s.method.reference or (s.name == "grpo" and config.method.get("beta"))
    beside = 4 * planned["parameters"] if frozen and peft.kind == "full" else 0
    if train.grad_accum > 1 and row["total"] is not None:
        beside += min(row["gradients"], row["activations"])
    total = None if row["total"] is None else row["total"] + beside
    return {"row": row, "beside": beside, "total": total, "parameters": planned["parameters"]}


def _longest(s: Situation) -> int:
    """Tokens of the longest row that is looked at."""
    if s.method.rewarded:
        return int(s.config.method.get("max_completion_length", 256)) + 64
    if s.name == "pretrain" or not s.rows:
        return s.config.train.max_length
    texts = sorted((text_of(row) for row in s.rows), key=len)[-8:]
    return max(8, *count_tokens(s.tokenizer, texts))


def count_adapter(s: Situation, config: FitConfig) -> tuple[int, int]:
    """Values and tensors that PEFT adds and trains, counted on the empty model."""
    settings = adapter_config(
        replace(config, peft=replace(config.peft, init_text=None)), s.method, s.model_type
    )
    if settings is None:
        return 0, 0
    adapted = peft.get_peft_model(copy.deepcopy(s.model), settings)
    counts = [p.numel() for p in adapted.parameters() if p.requires_grad]
    return sum(counts), len(counts)


def check_disk(config: FitConfig, memory: dict[str, Any]) -> Iterator[Finding]:
    """Find out whether checkpoints and result fit where they go."""
    folder = Path(config.out).absolute()
    while not folder.exists():
        folder = folder.parent
    trained, whole = memory["row"]["trainable"], memory["parameters"]
    needed = (KEPT + 1) * 12 * trained + 4 * (trained if config.peft.kind == "full" else trained + whole)
    free = shutil.disk_usage(folder).free
    if needed > free:
        yield error(
            "E-DISK",
            f"checkpoints and model take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free at {folder}",
            "free some space, or out=… elsewhere",
        )
