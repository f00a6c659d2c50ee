"""ONNX graphs compute what trained models compute, and run faster than PyTorch.

A ResNet-BK and a GPT-2 of a million parameters learn characters of source code for a few hundred steps, then
each is exported and compared at lengths up to 1,024 and batches of 1 to 4. Speed: one thread on both sides,
medians of wall times taken in turn.

Run: python benchmarks/export.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from harness import Figure, Gate, Result, main
from learning import read, train
from resnet_bk import gpt2, resnet_bk

from hilm.ship import bench, export_to_onnx, verify_onnx_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS, RATE = 300, 4e-3
LENGTHS = (1, 2, 3, 4, 17, 33, 64, 129, 255, 512, 1000, 1023, 1024)
TIMED = (16, 128, 512, 1024)


def errors(model: PreTrainedModel, precision: str) -> float:
    """Largest absolute difference of logits between the model and its graph, at all lengths."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export = export_to_onnx(model, path, precision=precision)
        print(f"  {export.precision}: {export.max_abs_error:.3g}, {export.nodes} nodes")
        return verify_onnx_model(model, path, lengths=LENGTHS).max_abs_error


def measure() -> Result:
    torch.set_num_threads(1)
    text = read()
    gates: list[Gate] = []
    figures: dict[str, Figure] = {}
    for name, make in (("ResNet-BK", resnet_bk), ("GPT-2", gpt2)):
        model, curve = train(make, RATE, STEPS, 1, text)
        figures[f"{name}: loss after {STEPS} steps"] = (curve[-1][1], "nats")
        gates.append(Gate(f"{name}: logits of the graph", errors(model, "auto"), "<=", 1e-5, "", 1e-6))
        report = bench(model, lengths=TIMED, runs=15)
        gates += [
            Gate(f"{name}: speed over PyTorch's at {row.length:,} tokens", row.speedup, ">=", 1.2, "x", 2.0)
            for row in report.forward
        ]
        figures |= {
            f"{name}: ONNX Runtime, {row.length:,} tokens": (row.onnxruntime_ms, "ms")
            for row in report.forward
        }
        if report.step_tokens_per_second is not None:
            figures[f"{name}: step graph"] = (report.step_tokens_per_second, "tokens/s")
    return Result(
        name="export",
        claim="ONNX graphs compute what trained models compute, and run faster than PyTorch",
        command="python benchmarks/export.py",
        gates=tuple(gates),
        figures=figures,
    )


if __name__ == "__main__":
    main(measure)
