"""How fast a model runs here: PyTorch against ONNX Runtime, and ResNet-BK token by token."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hilm.errors import UsageError
from hilm.models.resnet_bk import ResNetBKForCausalLM
from hilm.ship.onnx_export import export_to_onnx
from hilm.ship.onnx_optimize import milliseconds
from hilm.ship.onnx_verify import open_session, run
from hilm.ship.state_graph import OnnxStreamer
from hilm.ship.torch_model import evaluating, load_model, longest, sample_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

CONTEXT = 256
"""Tokens after which single steps are timed; a state of fixed size makes any number the same."""


@dataclass(frozen=True, slots=True)
class ForwardSpeed:
    """Median milliseconds of one forward pass over a sequence."""

    length: int
    torch_ms: float
    onnxruntime_ms: float
    speedup: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Speed on this machine.

    Attributes:
        threads: Of either side.
        precision: Of the graph: float64 where float32 is not close enough, and then slower.
        max_abs_error: Of the graph that was timed, verified at its default lengths.
        ok: Whether that passes.
        forward: One entry per length.
        step_tokens_per_second: ONNX Runtime, one token at a time, with state; ResNet-BK only.
    """

    threads: int
    precision: str
    max_abs_error: float | None
    ok: bool
    forward: tuple[ForwardSpeed, ...]
    step_tokens_per_second: float | None


def bench(
    model: PreTrainedModel | str | Path,
    *,
    lengths: Sequence[int] = (16, 128, 512),
    batch: int = 1,
    runs: int = 7,
) -> BenchReport:
    """Export a model to a temporary folder and time it against PyTorch, on the processor.

    Args:
        model: A model, its folder or its Hub id.
        lengths: Tokens per row; longer than the model takes are left out.
        batch: Rows.
        runs: Runs per figure, after one to warm up.

    Raises:
        UsageError: The model takes none of these lengths.
    """
    loaded = load_model(model)
    used = [length for length in lengths if length <= (longest(loaded) or length)]
    if not used:
        raise UsageError(f"the model takes at most {longest(loaded)} tokens", hint="name shorter lengths")
    with tempfile.TemporaryDirectory() as folder, evaluating(loaded):
        path = Path(folder) / "model.onnx"
        report = export_to_onnx(loaded, path, max_length=max(used), precision="auto")
        forward = [forward_speed(loaded, path, length, batch, runs) for length in used] if report.ok else []
        steps = None
        if isinstance(loaded, ResNetBKForCausalLM):
            export_to_onnx(loaded, Path(folder) / "step.onnx", graph="step", verify=False)
            steps = step_speed(loaded, Path(folder) / "step.onnx", batch)
    return BenchReport(
        torch.get_num_threads(), report.precision, report.max_abs_error, report.ok, tuple(forward), steps
    )


def forward_speed(model: PreTrainedModel, path: Path, length: int, batch: int, runs: int) -> ForwardSpeed:
    """Time both sides on the same inputs and threads, in turn, so that a busy moment hits both."""
    session = open_session(path, torch.get_num_threads())
    inputs = sample_inputs(model, batch, length)
    pairs = [
        (milliseconds(lambda: model(**inputs)), milliseconds(lambda: run(session, inputs)))
        for _ in range(runs + 1)
    ]
    pytorch, runtime = (statistics.median(times) for times in zip(*pairs[1:], strict=True))
    return ForwardSpeed(length, pytorch, runtime, pytorch / runtime)


def step_speed(model: ResNetBKForCausalLM, path: Path, batch: int) -> float:
    """Feed tokens one by one; return tokens per second of the last half."""
    streamer = OnnxStreamer(path, model.config, batch)
    ids = np.ones((batch, 1), np.int64)
    times = [milliseconds(lambda: streamer.feed(ids)) for _ in range(CONTEXT)]
    return 1e3 * batch / statistics.median(times[CONTEXT // 2 :])
