"""ONNX graphs compute what trained models compute, and run faster than PyTorch.

A ResNet-BK and a GPT-2 of 0.8 million parameters learn characters of source code for a few hundred steps;
then each is exported and compared at lengths up to 1,024 and batches of 1 to 4. Speed is that of the float32
graph: one thread on both sides, processor time, medians of pairs.

Run: python benchmarks/export.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from harness import Figure, Gate, Pairs, Result, main, paired
from learning import read, train
from resnet_bk import gpt2, resnet_bk

from hilm.ship import export_to_onnx
from hilm.ship.onnx_verify import open_session, run
from hilm.ship.torch_model import evaluating, sample_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS, RATE = 300, 4e-3
TIMED = (16, 128, 512, 1024)


def timed(model: PreTrainedModel, path: Path, length: int) -> Pairs:
    """Processor seconds of PyTorch and of ONNX Runtime for one row."""
    session, inputs = open_session(path, threads=1), sample_inputs(model, 1, length)
    with evaluating(model):
        return paired(lambda: model(**inputs), lambda: run(session, inputs), 15, time.process_time)


def exported(name: str, model: PreTrainedModel) -> tuple[list[Gate], dict[str, Figure]]:
    """Return gates and figures of one model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        single = chosen = export_to_onnx(model, path, precision="auto")
        if chosen.precision != "float32":
            single = export_to_onnx(model, path, tolerance=1.0, force=True)
        pairs = {length: timed(model, path, length) for length in TIMED}
    speeds = [
        Gate(f"{name}: speed over PyTorch's at {length:,} tokens", pair.ratio, ">=", 1.2, "x", 2.0)
        for length, pair in pairs.items()
    ]
    times = {
        f"{name}: ONNX Runtime, {length:,} tokens": (1e3 * statistics.median(pair.second), "ms")
        for length, pair in pairs.items()
    }
    figures = {
        f"{name}: error of logits, float32": (single.max_abs_error, ""),
        f"{name}: bits that precision=auto chose": (int(chosen.precision[-2:]), ""),
    }
    gate = Gate(f"{name}: error of logits, precision=auto", chosen.max_abs_error, "<=", 1e-5, "", 1e-6)
    return [gate, *speeds], figures | times


def measure() -> Result:
    torch.set_num_threads(1)
    text, gates, figures = read(), [], {}
    for name, make in (("ResNet-BK", resnet_bk), ("GPT-2", gpt2)):
        trained = train(make, RATE, STEPS, 1, text)
        figures[f"{name}: loss after {STEPS} steps"] = (trained.curve[-1][1], "nats")
        more, measured = exported(name, trained.model)
        gates += more
        figures |= measured
    return Result(
        name="export",
        claim="ONNX graphs compute what trained models compute, and run faster than PyTorch",
        command="python benchmarks/export.py",
        gates=tuple(gates),
        figures=figures,
    )


if __name__ == "__main__":
    main(measure)
