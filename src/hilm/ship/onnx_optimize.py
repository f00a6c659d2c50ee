"""ONNX Runtime's graph optimisations, checked against the graph they started from."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from hilm.errors import UsageError
from hilm.ship.onnx_verify import difference, open_session, refusing, run
from hilm.ship.publication import check_free, publish, staged

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

LEVELS = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}


@dataclass(frozen=True, slots=True)
class OptimizationReport:
    """What an optimisation did; times are medians of one run of 2 x 17 tokens, without the runtime's own."""

    path: str
    level: str
    nodes_before: int
    nodes_after: int
    milliseconds_before: float
    milliseconds_after: float
    max_abs_error: float
    ok: bool

    def __bool__(self) -> bool:
        return self.ok


def optimized(path: Path, out: Path, level: str) -> None:
    """Let ONNX Runtime rewrite a graph; "extended" and "all" use operators only it has.

    Raises:
        UsageError: There is no such level.
        VerificationError: The graph does not load.
    """
    if level not in LEVELS:
        raise UsageError(f"there is no optimisation level {level!r}", hint=", ".join(LEVELS))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    raw = out.with_name(f"optimized-{out.name}")
    options.optimized_model_filepath = str(raw)
    with refusing(path):
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(raw, load_external_data=False)
    onnx.load_external_data_for_model(model, str(path.parent))  # it names the original's weights
    raw.unlink()
    out.with_name(f"{out.name}.data").unlink(missing_ok=True)
    onnx.save_model(model, out, save_as_external_data=True, location=f"{out.name}.data")


def optimize_onnx_model(
    path: str | Path, out: str | Path, level: str = "all", *, tolerance: float = 1e-5
) -> OptimizationReport:
    """Optimise a graph, compare it with the original, and time both on this machine.

    Args:
        path: The graph.
        out: Where to write the new one.
        level: "basic", "extended" or "all".
        tolerance: Largest absolute error; nothing is written beyond it.

    Raises:
        UsageError: ``out`` exists, or there is no such level.
        VerificationError: The graph does not load.
    """
    path, out = Path(path), Path(out)
    check_free(out, force=False)
    with staged(out) as part:
        optimized(path, part, level)
        sessions = open_session(path), open_session(part)
        inputs = drawn(sessions[0])
        answers = [run(session, inputs) for session in sessions]
        error = max(difference(value, answers[1][name], None).error for name, value in answers[0].items())
        report = OptimizationReport(
            path=str(out),
            level=level,
            nodes_before=count_nodes(path),
            nodes_after=count_nodes(part),
            milliseconds_before=median_milliseconds(lambda: run(sessions[0], inputs)),
            milliseconds_after=median_milliseconds(lambda: run(sessions[1], inputs)),
            max_abs_error=error,
            ok=error <= tolerance,
        )
        if report.ok:
            publish(part, out)
    return report


def count_nodes(path: Path) -> int:
    """Return how many operations a graph's main part has."""
    return len(onnx.load(path, load_external_data=False).graph.node)


def drawn(session: InferenceSession) -> dict[str, NDArray[Any]]:
    """Draw inputs a graph accepts, knowing nothing of the model: ids 0 and 1, masks of ones, small floats."""
    random = np.random.default_rng(0)
    inputs: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        shape = [
            size if isinstance(size, int) else (2 if axis == 0 else 17)
            for axis, size in enumerate(value.shape)
        ]
        if "mask" in value.name:
            inputs[value.name] = np.ones(shape, np.int64)
        elif "int" in value.type:
            inputs[value.name] = random.integers(0, 2, shape)
        else:
            inputs[value.name] = random.random(shape, np.float32)
    return inputs


def median_milliseconds(call: Callable[[], object], runs: int = 7) -> float:
    """Time a call after one to warm up."""
    return statistics.median([milliseconds(call) for _ in range(runs + 1)][1:])


def milliseconds(call: Callable[[], object]) -> float:
    """Time a call."""
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)
