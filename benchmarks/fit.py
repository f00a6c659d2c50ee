"""`hilm fit`: recipes learn, their parent is confirmed by the weights, and the memory plan holds.

Every recipe trains a Llama of 107,200 parameters on 64 short rows for 40 steps (sft also with LoRA, and a
T5); ppo on a toy reward, the share of ASCII characters, over five seeds. Memory: peak resident size of a
process that trains two models of some 30 M parameters, less its size before, against the plan made from the
headers alone. One thread.

Run: python benchmarks/fit.py
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # before the libraries read them
sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil
import torch
import transformers
from harness import Gate, Result, main
from tests.training.models import rows_for, tokenizer, write_models, write_rows

from hilm.extras import require
from hilm.store import Store
from hilm.store.reading import no_progress
from hilm.training import fit
from hilm.training.config import from_document
from hilm.training.preflight import preflight
from hilm.training.record import Run
from hilm.training.worker import train

STEPS, RATE = 40, 3e-3
PROMPT = {"num_generations": 4, "max_completion_length": 8}
RECIPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: figure that has to move, direction, keys of the method
    "sft": ("loss", "falls", {}),
    "sft lora": ("loss", "falls", {}),
    "dpo": ("rewards/accuracies", "rises", {}),
    "reward": ("accuracy", "rises", {}),
    "kto": ("loss", "falls", {}),
    "grpo": ("reward", "rises", PROMPT),
    "rloo": ("reward", "rises", PROMPT),
    "ppo": ("reward", "rises", {"max_completion_length": 8}),
    "classify": ("loss", "falls", {}),
    "pretrain": ("loss", "falls", {}),
    "sft t5": ("loss", "falls", {}),
}
SEEDS = range(5)
KINDS = ("full", "lora", "qlora")
PLANNED = ("llama", "gpt2")
MALLOC = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536") | {
    "MALLOC_ARENA_MAX": "1"
}
"""Memory that is freed is given back at once, and not counted."""


def configure(folder: Path, recipe: str, **changes: str) -> tuple[str, dict[str, Any]]:
    name, _, other = recipe.partition(" ")
    base = "t5" if other == "t5" else "llama"
    rows = write_rows(folder / f"{recipe}.jsonl", rows_for("seq2seq" if other == "t5" else name))
    steps = 60 if name == "ppo" else STEPS
    return name, {
        "model": {"path": str(folder / base)},
        "data": {"path": str(rows)},
        "out": str(folder / f"run {recipe}"),
        "peft": {"kind": "lora" if other == "lora" else "full"},
        "train": {"steps": steps, "batch_size": 16, "max_length": 32, "learning_rate": RATE, "log_every": 1},
        "method": RECIPES[recipe][2],
        "reward": {"kind": "function", "function": str(folder / "toy.py:ascii_share")},
    } | changes


def learn(folder: Path, recipe: str) -> tuple[float, float, float, float]:
    """Mean of the figure over the first and the last fifth, seconds, and p-value of the parent."""
    name, document = configure(folder, recipe)
    begin = time.process_time()
    found = fit(name, from_document(document), store=Store(folder / "store"))
    spent = time.process_time() - begin
    figure = RECIPES[recipe][0]
    events = Run.open(Path(document["out"])).events()
    values = [event[figure] for event in events if event.get(figure) is not None]
    fifth = max(1, len(values) // 5)
    return statistics.mean(values[:fifth]), statistics.mean(values[-fifth:]), spent, found["p_value"]


def rise(folder: Path, seed: int) -> float:
    """How far the mean reward of ppo rises, in standard errors of the difference."""
    name, document = configure(folder, "ppo", out=str(folder / f"ppo {seed}"))
    document["train"] |= {"seed": seed, "batch_size": 32}
    config = from_document(document)
    run = Run(Path(config.out))
    run.start(name, config, {})
    train(run, resume=False, progress=no_progress)
    rewards = [event["reward"] for event in run.events() if "reward" in event]
    first, last = rewards[:5], rewards[-5:]
    error = ((statistics.variance(first) + statistics.variance(last)) / 5) ** 0.5
    return (statistics.mean(last) - statistics.mean(first)) / error


def write_larger(folder: Path) -> None:
    sizes = {"vocab_size": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    llama = transformers.LlamaConfig(
        hidden_size=640, intermediate_size=1728, num_hidden_layers=6, num_attention_heads=10, **sizes
    )
    gpt2 = transformers.GPT2Config(n_embd=640, n_layer=6, n_head=10, n_positions=512, attn_pdrop=0.0, **sizes)
    for name, model in (
        ("llama", transformers.LlamaForCausalLM(llama)),
        ("gpt2", transformers.GPT2LMHeadModel(gpt2)),
    ):
        model.save_pretrained(folder / "larger" / name)
        tokenizer().save_pretrained(folder / "larger" / name)


def weigh(folder: str, name: str, kind: str) -> None:
    """In a process of its own: print planned and measured bytes as JSON."""
    _, document = configure(Path(folder), "pretrain", out=f"{folder}/weigh {name} {kind}")
    document["model"]["path"] = f"{folder}/larger/{name}"
    document["peft"] = {"kind": kind, "targets": "all-linear"}
    document["train"] |= {"steps": 3, "batch_size": 4, "max_length": 256, "precision": "fp32"}
    config = from_document(document)
    quieten()
    planned = preflight("pretrain", config).plan["total"]
    warm = from_document(document | {"model": {"path": f"{folder}/llama"}, "out": f"{config.out} warm"})
    for asked in (warm, config):  # what libraries load at their first step is not measured
        run = Run(Path(asked.out))
        run.start("pretrain", asked, {})
        if asked is warm:
            train(run, resume=False, progress=no_progress)
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    train(run, resume=False, progress=no_progress)
    done.set()
    thread.join()
    sys.stdout.write(json.dumps({"planned": planned, "measured": peak - before}) + "\n")


def plan_errors(folder: Path) -> dict[str, tuple[float, float]]:
    """Planned and measured MiB of each model and way to train."""
    write_larger(folder)
    found = {}
    for name in PLANNED:
        for kind in KINDS:
            words = [sys.executable, __file__, "--weigh", str(folder), name, kind]
            done = subprocess.run(words, env=os.environ | MALLOC, stdout=subprocess.PIPE, check=True)
            weights = json.loads(done.stdout.splitlines()[-1])
            found[f"{name} {kind}"] = weights["planned"] / 2**20, weights["measured"] / 2**20
    return found


def quieten() -> None:
    require("datasets").disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def measure() -> Result:
    quieten()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = write_models(Path(name))
        (folder / "toy.py").write_text(
            "def ascii_share(completions, **_):\n"
            "    return [sum(c.isascii() for c in text) / 8 for text in completions]\n"
        )
        learned = {recipe: learn(folder, recipe) for recipe in RECIPES}
        rises = [rise(folder, seed) for seed in SEEDS]
        memory = plan_errors(folder)
    moved = [
        (last > first) == (RECIPES[recipe][1] == "rises") for recipe, (first, last, _, _) in learned.items()
    ]
    errors = {name: abs(planned / measured - 1) for name, (planned, measured) in memory.items()}
    lines = [
        (recipe, RECIPES[recipe][0], f"{first:.3g}", f"{last:.3g}", f"{spent:.1f}", f"{p:.2g}")
        for recipe, (first, last, spent, p) in learned.items()
    ]
    return Result(
        name="fit",
        claim="`hilm fit` trains by every method, and the weights prove the parent",
        command="python benchmarks/fit.py",
        gates=(
            Gate("recipes whose figure moves the right way", sum(moved), ">=", len(moved), ""),
            Gate("slowest recipe, processor time", max(x[2] for x in learned.values()), "<=", 20, "s"),
            Gate(
                "parent confirmed, least -log10 of p",
                -math.log10(max(x[3] for x in learned.values())),
                ">=",
                6,
                "",
            ),
            Gate("ppo: rise of the reward, least of 5 seeds", min(rises), ">=", 3, "standard errors"),
            Gate("memory plan, largest error", 100 * max(errors.values()), "<=", 15, "%"),
        ),
        figures={f"memory plan error, {name}": (100 * error, "%") for name, error in errors.items()}
        | {
            f"ppo: rise, seed {seed}": (value, "standard errors")
            for seed, value in zip(SEEDS, rises, strict=True)
        },
        table=(("recipe", "figure", "first fifth", "last fifth", "CPU s", "p of the parent"), *lines),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--weigh"]:
        weigh(*sys.argv[2:])
    else:
        main(measure)
