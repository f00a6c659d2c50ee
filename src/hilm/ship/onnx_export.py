"""Any transformers model → an ONNX graph of dynamic batch and length, published only when it is right."""

from __future__ import annotations

import dataclasses
import io
import logging
import time
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir
from torch.export import Dim
from transformers.exporters import OnnxConfig, OnnxExporter

from hilm import __version__
from hilm.errors import UsageError
from hilm.ship.onnx_optimize import optimized
from hilm.ship.onnx_verify import VerificationReport, verify_onnx_model
from hilm.ship.publication import check_free, files_of, publish, staged
from hilm.ship.state_graph import state_graph, verify_state_graph
from hilm.ship.torch_model import cast, evaluating, load_model, sample_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from hilm.ship.torch_model import Inputs

PRECISIONS = {"float32": 1e-5, "float64": 1e-5, "float16": 2e-2}
"""Precision → largest absolute error that passes; float16 is compared with the float32 model."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and how far it is from the model.

    Attributes:
        path: The graph; nothing is there unless ``ok``.
        files: It and its weights.
        precision: Of weights and arithmetic.
        opset: ONNX operator set.
        nodes: Operations of the main graph.
        bytes: Size of the files.
        max_abs_error: As in VerificationReport, and the fields after it; None when not verified.
        seconds: Wall time, verification included.
    """

    path: str
    files: tuple[str, ...]
    precision: str
    opset: int
    nodes: int
    bytes: int
    seconds: float
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    top1_agreement: float | None = None
    tolerance: float | None = None
    lengths: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    ok: bool = True

    def __bool__(self) -> bool:
        return self.ok


def export_to_onnx(
    model: PreTrainedModel | str | Path,
    path: str | Path,
    *,
    inputs: Inputs | None = None,
    max_length: int | None = None,
    graph: str = "full",
    precision: str = "float32",
    optimize: str | None = None,
    opset: int = 18,
    verify: bool = True,
    tolerance: float | None = None,
    force: bool = False,
) -> ExportReport:
    """Export a model, compare the graph with it, and publish both files or neither.

    Args:
        model: A model, its folder or its Hub id.
        path: ``NAME.onnx``; the weights go to ``NAME.onnx.data`` beside it.
        inputs: Example inputs, name → tensor, batch and then length first; drawn when None.
        max_length: Longest sequence verified; 1024 or what the model takes when None.
        graph: "full"; for ResNet-BK also "step" (one token, state in and out) and "chunk" (several tokens).
        precision: "float32", "float64", "float16", or "auto": float64 where float32 is not close enough.
        optimize: ONNX Runtime's level "basic", "extended" or "all"; the latter two run nowhere else.
        opset: ONNX operator set.
        verify: Whether to compare.
        tolerance: Largest absolute error, instead of 1e-5 (float16: 2e-2).
        force: Whether to replace ``path``.

    Returns:
        The report; when it is not ok, nothing was written.

    Raises:
        UsageError: ``path`` exists, or an option is unknown.
        VerificationError: ONNX Runtime refuses the graph.
    """
    path, precisions = Path(path), ("float32", "float64") if precision == "auto" else (precision,)
    if set(precisions) - set(PRECISIONS):
        raise UsageError(f"there is no precision {precision!r}", hint=f"{', '.join(PRECISIONS)} or auto")
    check_free(path, force=force)
    loaded = load_model(model)
    for chosen in precisions:
        limit = PRECISIONS[chosen] if tolerance is None else tolerance
        started = time.perf_counter()
        with staged(path) as part, evaluating(loaded):
            source = cast(loaded, chosen)
            write(source, part, graph, inputs, opset, optimize)
            report = None
            if verify:
                reference = loaded if chosen == "float16" else source
                report = check(reference, source, part, graph, inputs, max_length, limit)
            result = described(path, part, chosen, report, time.perf_counter() - started)
            if result.ok:
                publish(part, path)
                break
    return result


def check(
    reference: PreTrainedModel,
    source: PreTrainedModel,
    part: Path,
    graph: str,
    inputs: Inputs | None,
    max_length: int | None,
    tolerance: float,
) -> VerificationReport:
    """Compare a graph with its reference."""
    if graph != "full":
        return verify_state_graph(source, part, graph, tolerance)
    return verify_onnx_model(reference, part, inputs=inputs, max_length=max_length, tolerance=tolerance)


def write(
    model: PreTrainedModel, path: Path, graph: str, inputs: Inputs | None, opset: int, optimize: str | None
) -> None:
    """Trace a model and save the graph."""
    with quietly():
        full = graph == "full"
        program = full_graph(model, inputs, opset) if full else state_graph(model, graph, opset)
    for node in program.graph:
        if node.op_type == "Scan" and not node.attributes["scan_output_directions"].value:
            del node.attributes["scan_output_directions"]  # the quantiser cannot read an empty list
    for value in program.graph.initializers.values():
        if value.dtype == onnx_ir.DataType.DOUBLE and np.isneginf(value.const_value.numpy()).any():
            lowest = np.full(value.shape, np.finfo(np.float64).min)  # what a mask multiplies by 0 as well
            value.const_value = onnx_ir.tensor(lowest, name=value.name)
    program.metadata_props.update(
        {"hilm": __version__, "model_type": model.config.model_type, "graph": graph}
    )
    OnnxExporter.save_program(program, path)
    if optimize is not None:
        optimized(path, path, optimize)


def full_graph(model: PreTrainedModel, inputs: Inputs | None, opset: int) -> onnx_ir.Model:
    """Trace one forward pass; the first axis and the second of ids and masks are dynamic."""
    sample: dict[str, Any] = dict(inputs or sample_inputs(model, 2, 21))
    shapes = {
        name: dict.fromkeys(range(2 if value.ndim == 2 and not value.is_floating_point() else 1), Dim.AUTO)
        for name, value in sample.items()
    }
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=opset)
    flags = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    program: onnx_ir.Model = OnnxExporter().export(model, sample | flags, config=config).program
    for value in program.graph.inputs:
        if value.name in shapes and value.shape is not None:
            side = "decoder_sequence" if value.name.startswith("decoder") else "sequence"
            for axis in shapes[value.name]:
                value.shape[axis] = onnx_ir.SymbolicDim(("batch", side)[axis])
    return program


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the exporters' progress off stdout and their notes off stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def described(
    path: Path, part: Path, precision: str, report: VerificationReport | None, seconds: float
) -> ExportReport:
    """Report on a graph that lies at ``part`` and is meant for ``path``."""
    model = onnx.load(part, load_external_data=False)
    return ExportReport(
        path=str(path),
        files=tuple(str(path.with_name(file.name)) for file in files_of(part)),
        precision=precision,
        opset=next(entry.version for entry in model.opset_import if not entry.domain),
        nodes=len(model.graph.node),
        bytes=sum(file.stat().st_size for file in files_of(part)),
        seconds=seconds,
        **({} if report is None else measured(report)),
    )


def measured(report: VerificationReport) -> dict[str, Any]:
    """Return what an export's report repeats of its verification."""
    return {name: value for name, value in dataclasses.asdict(report).items() if name != "path"}
