"""ResNet-BK learns the characters of source code no worse than a GPT-2 of the same size.

Text: the standard library, without its tests and tables of encodings; every tenth file is held out. Both
models have three layers of width 64 and tied embeddings, and see the same windows in the same order. Per
model and budget the learning rate is the best of one grid on seed 0; other seeds are compared. One thread.

Run: python benchmarks/learning.py
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from harness import RESULTS, Figure, Gate, Result, main
from plot import Line, plot
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from hilm.models.resnet_bk import ResNetBKConfig, ResNetBKForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SYMBOLS, WIDTH, LAYERS, WINDOW, BATCH = 128, 64, 3, 128, 8
BUDGETS = {300: 0.0, 1500: -0.1}
"""Steps → what the loss less GPT-2's must not exceed."""
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
SEEDS = (1, 2, 3)
POINTS = 10
LEFT_OUT = {"encodings", "idle_test", "site-packages", "test", "tests"}
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "learning.png"
COLOURS = {"ResNet-BK": (203, 88, 20), "GPT-2": (40, 96, 168)}


def resnet_bk() -> ResNetBKForCausalLM:
    return ResNetBKForCausalLM(
        ResNetBKConfig(
            vocab_size=SYMBOLS, d_model=WIDTH, n_layers=LAYERS, n_seq=WINDOW, num_experts=2, d_ff=142,
            bk_channels=16, tie_word_embeddings=True, pad_token_id=None, use_cache=False,
        )
    )  # fmt: skip


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=SYMBOLS, n_positions=WINDOW, n_embd=WIDTH, n_layer=LAYERS, n_head=4,
            activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=1, eos_token_id=2, attn_implementation="sdpa", use_cache=False,
        )
    )  # fmt: skip


MODELS: Mapping[str, Callable[[], PreTrainedModel]] = {"ResNet-BK": resnet_bk, "GPT-2": gpt2}

Curve: TypeAlias = list[tuple[int, float]]
"""Loss on held-out windows by step."""
Figures: TypeAlias = dict[str, Figure]


class Text(NamedTuple):
    """Characters: one sequence to learn from, and 32 rows of eight windows held out."""

    learned: torch.Tensor
    held_out: torch.Tensor


class Run(NamedTuple):
    """A trained model, and how it got there."""

    model: PreTrainedModel
    curve: Curve


def read() -> Text:
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(root.rglob("*.py")) if not LEFT_OUT & set(file.relative_to(root).parts)]
    texts = [bytes(byte for byte in file.read_bytes() if byte < SYMBOLS) for file in files]
    held_out = codes(b"".join(texts[::10]))
    del texts[::10]
    starts = torch.linspace(0, len(held_out) - 8 * WINDOW, 32).long()
    rows = torch.stack([held_out[start : start + 8 * WINDOW] for start in starts])
    return Text(codes(b"".join(texts)), rows)


def codes(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def loss(model: PreTrainedModel, rows: torch.Tensor, start: int = 1) -> float:
    """Nats per character from place ``start`` of each row on."""
    with torch.no_grad():
        logits = torch.cat([model.eval()(part).logits[:, start - 1 : -1] for part in rows.split(16)])
    return float(cross_entropy(logits.flatten(0, 1), rows[:, start:].flatten()))


def train(
    make: Callable[[], PreTrainedModel], rate: float, steps: int, seed: int, text: Text, points: int = 1
) -> Run:
    """Train with AdamW: warm-up over a twentieth of the steps, then a cosine down to 0."""
    torch.manual_seed(seed)
    model, curve = make(), []
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95))
    draw = torch.Generator().manual_seed(seed)  # the same windows for both models
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = rate * min(
            20 * step / steps, (1 + math.cos(math.pi * step / steps)) / 2
        )
        starts = torch.randint(len(text.learned) - WINDOW, (BATCH, 1), generator=draw)
        rows = text.learned[starts + torch.arange(WINDOW)]
        model.train()(rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % (steps // points) == 0:
            curve.append((step, loss(model, text.held_out.view(-1, WINDOW))))
    shown = f"{make.__name__} {steps} steps, seed {seed}, rate {rate}: {curve[-1][1]:.4f}"
    print(shown, file=sys.stderr, flush=True)
    return Run(model, curve)


def trained(name: str, steps: int, text: Text) -> tuple[float, list[Run]]:
    """Return the best rate on seed 0, and one run per other seed with it."""
    rate = min(RATES, key=lambda rate: train(MODELS[name], rate, steps, 0, text).curve[-1][1])
    return rate, [train(MODELS[name], rate, steps, seed, text, POINTS) for seed in SEEDS]


def further(runs: list[Run], text: Text) -> float:
    """Loss at 4 to 8 times the training length, less that within it, on the same characters."""
    near = text.held_out[:, 4 * WINDOW :].reshape(-1, WINDOW)
    return statistics.mean(
        loss(run.model, text.held_out, 4 * WINDOW + 1) - loss(run.model, near) for run in runs
    )


def compared(
    steps: int, rates: Mapping[str, float], curves: Mapping[str, list[Curve]]
) -> tuple[Gate, Figures]:
    """Return the gate of one budget, and mean, spread and rate of both models."""
    ends = {name: [curve[-1][1] for curve in named] for name, named in curves.items()}
    gap = statistics.mean(ends["ResNet-BK"]) - statistics.mean(ends["GPT-2"])
    figures = {}
    for name, losses in ends.items():
        figures[f"{name}, {steps:,} steps: loss"] = (statistics.mean(losses), "nats")
        figures[f"{name}, {steps:,} steps: deviation over seeds"] = (statistics.stdev(losses), "nats")
        figures[f"{name}, {steps:,} steps: best rate"] = (rates[name], "")
    return Gate(f"loss less GPT-2's after {steps:,} steps", gap, "<=", BUDGETS[steps], "nats"), figures


def publish(curves: Mapping[int, Mapping[str, list[Curve]]]) -> None:
    """Write every point, and the picture."""
    (RESULTS / "curves").mkdir(exist_ok=True)
    (RESULTS / "curves" / "learning.json").write_text(json.dumps(curves) + "\n")
    panels = [
        (f"{steps:,} steps", [Line(name, COLOURS[name], curve) for name in MODELS for curve in named[name]])
        for steps, named in curves.items()
    ]
    plot(PICTURE, "Loss on held-out source code, nats per character, one line per seed", panels)


def measure() -> Result:
    torch.set_num_threads(1)
    text = read()
    sizes = {name: sum(weight.numel() for weight in model().parameters()) for name, model in MODELS.items()}
    gates = [Gate("parameters against GPT-2's", abs(sizes["ResNet-BK"] / sizes["GPT-2"] - 1), "<=", 0.02, "")]
    figures: Figures = {f"{name}: parameters": (number, "") for name, number in sizes.items()}
    curves = {}
    for steps in BUDGETS:
        chosen = {name: trained(name, steps, text) for name in MODELS}
        curves[steps] = {name: [run.curve for run in runs] for name, (_, runs) in chosen.items()}
        gate, more = compared(steps, {name: rate for name, (rate, _) in chosen.items()}, curves[steps])
        gates.append(gate)
        figures |= more
    far = further(chosen["ResNet-BK"][1], text)
    gates.append(Gate("loss at 4 to 8 times the training length less that in it", far, "<=", 0.12, "nats"))
    publish(curves)
    return Result(
        name="learning",
        claim="ResNet-BK learns the characters of source code no worse than a GPT-2 of the same size",
        command="python benchmarks/learning.py",
        gates=tuple(gates),
        figures=figures,
    )


if __name__ == "__main__":
    main(measure)
