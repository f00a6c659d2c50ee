"""Does an ONNX graph compute what the model computes?"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as failures

from hilm.errors import VerificationError
from hilm.parity.metrics import measure
from hilm.ship.torch_model import cases, evaluating, load_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession
    from torch import Tensor
    from transformers import PreTrainedModel

    from hilm.ship.torch_model import Inputs

FAILURES = (
    failures.Fail,
    failures.InvalidArgument,
    failures.InvalidGraph,
    failures.InvalidProtobuf,
    failures.NotImplemented,
    failures.RuntimeException,
    failures.NoSuchFile,
)


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """How far a graph is from its model.

    Attributes:
        path: The graph.
        lengths: Sequence lengths compared.
        batches: Batch sizes compared.
        max_abs_error: Largest difference at a token that is not masked, over all outputs.
        max_rel_error: The same by the largest reference value.
        top1_agreement: Share of rows whose largest value is the same entry.
        tolerance: What max_abs_error may be.
        ok: Whether it is.
    """

    path: str
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    top1_agreement: float
    tolerance: float
    ok: bool

    def __bool__(self) -> bool:
        return self.ok


@contextmanager
def refusing(path: Path | str) -> Iterator[None]:
    """Turn what ONNX Runtime raises into a failed verification.

    Raises:
        VerificationError: The graph does not load or does not run.
    """
    try:
        yield
    except FAILURES as error:
        reason = str(error).strip().splitlines()[0]
        raise VerificationError(
            f"ONNX Runtime refuses {path}: {reason}", hint="the graph is damaged or needs another runtime"
        ) from error


def open_session(path: Path | str, threads: int = 0) -> InferenceSession:
    """Load a graph on the processor.

    Args:
        path: The .onnx file.
        threads: 0 lets the runtime choose.

    Raises:
        VerificationError: It does not load.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses comes back as an error
    options.intra_op_num_threads = threads
    with refusing(path):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: InferenceSession, inputs: Mapping[str, Tensor | NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a graph on the inputs it knows; floats are cast to what it takes.

    Raises:
        VerificationError: It does not run.
    """
    known = {value.name: value.type for value in session.get_inputs()}
    floats = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    feed = {
        name: np.asarray(value).astype(floats.get(known[name], np.asarray(value).dtype))
        for name, value in inputs.items()
        if name in known
    }
    names = [value.name for value in session.get_outputs()]
    with refusing("this input"):
        return dict(zip(names, session.run(names, feed), strict=True))


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest error, largest reference value, and rows whose largest entry agrees, of all."""

    error: float
    scale: float
    agreed: int
    rows: int


def difference(reference: NDArray[Any], answer: NDArray[Any], mask: NDArray[Any] | None) -> Difference:
    """Compare one output; masked tokens do not count."""
    if mask is not None and reference.shape[:2] == mask.shape:
        reference, answer = reference[mask > 0], answer[mask > 0]
    left, right = (array.reshape(-1, array.shape[-1] if array.ndim else 1) for array in (reference, answer))
    measured, agreed = measure(left, right), left.argmax(-1) == right.argmax(-1)
    error = math.nan if measured.nonfinite else measured.max_abs
    return Difference(error, float(np.abs(reference).max()), int(agreed.sum()), agreed.size)


def compare(model: PreTrainedModel, session: InferenceSession, inputs: Inputs) -> Iterator[Difference]:
    """Compare every floating output of a graph with the model's of the same name.

    Raises:
        VerificationError: There is none to compare, or one has another shape.
    """
    answers = run(session, inputs)
    typed = {
        name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()
    }
    outputs = model(
        **typed, return_dict=True, **({"use_cache": False} if "use_cache" in vars(model.config) else {})
    )
    mask = inputs.get("attention_mask") if "decoder_input_ids" not in inputs else None
    compared = [
        (value.numpy(), answers[name])
        for name, value in outputs.items()
        if name in answers and isinstance(value, torch.Tensor)
    ]
    if not compared or any(a.shape != b.shape for a, b in compared):
        raise VerificationError(
            f"the graph gives {', '.join(answers)}, the model {', '.join(outputs)}, or of other shapes",
            hint="is it a graph of this model?",
        )
    return starmap(lambda a, b: difference(a, b, None if mask is None else mask.numpy()), compared)


def summarise(
    path: Path | str, runs: Sequence[Difference], shapes: Sequence[tuple[int, ...]], tolerance: float
) -> VerificationReport:
    """Put the worst of all comparisons into a report; NaN is no agreement."""
    errors = np.array([run.error for run in runs])
    error, scale = float(errors.max()), max(run.scale for run in runs)
    return VerificationReport(
        path=str(path),
        lengths=tuple(sorted({shape[1] for shape in shapes if len(shape) == 2})),
        batches=tuple(sorted({shape[0] for shape in shapes})),
        max_abs_error=error,
        max_rel_error=error / scale if scale else error,
        top1_agreement=sum(run.agreed for run in runs) / max(1, sum(run.rows for run in runs)),
        tolerance=tolerance,
        ok=bool(error <= tolerance),
    )


def verify_onnx_model(
    model: PreTrainedModel | str | Path,
    path: str | Path,
    *,
    inputs: Inputs | None = None,
    lengths: tuple[int, ...] | None = None,
    max_length: int | None = None,
    tolerance: float = 1e-5,
) -> VerificationReport:
    """Compare a graph with its model on random inputs of several batches and lengths.

    Args:
        model: A model, its folder or its Hub id.
        path: The .onnx file.
        inputs: What to compare on instead: name → tensor.
        lengths: Sequence lengths; 1, 2, 17 and the two longest when None.
        max_length: The longest, 1024 or what the model takes when None.
        tolerance: Largest absolute error.

    Raises:
        VerificationError: The graph does not load, does not run, or has other outputs.
    """
    model = load_model(model)
    session = open_session(path)
    drawn = cases(model, lengths, max_length) if inputs is None else [inputs]
    with evaluating(model):
        runs = [result for case in drawn for result in compare(model, session, case)]
    shapes = [tuple(next(iter(case.values())).shape) for case in drawn]
    return summarise(path, runs, shapes, tolerance)
