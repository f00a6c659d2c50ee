"""ONNX graph → TensorRT engine, by the interface of TensorRT 10 and later.

Written against NVIDIA's documentation and checked with a recording stand-in; it has not run on a GPU.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from hilm.errors import HilmError, MissingExtra, UsageError, VerificationError
from hilm.extras import require
from hilm.ship.onnx_export import ExportReport, export_to_onnx, measured
from hilm.ship.onnx_optimize import median_milliseconds
from hilm.ship.onnx_verify import difference, open_session, run, summarise
from hilm.ship.publication import check_free, publish, staged
from hilm.ship.torch_model import LONGEST, evaluating, load_model, sample_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "int8": float("inf")}
"""Precision → largest absolute difference from ONNX Runtime that passes; int8 is reported, not bounded."""


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """Median milliseconds of one forward pass, all measured here on the same inputs, and torch / TensorRT."""

    torch_ms: float
    tensorrt_ms: float
    speedup: float
    device: str


def require_tensorrt() -> Any:  # noqa: ANN401 - an optional module without types
    """Return TensorRT.

    Raises:
        MissingExtra: It, its version 10, or a GPU is missing.
    """
    hint = (
        "pip install tensorrt, on a machine with an NVIDIA GPU; the ONNX graph (hilm export onnx) runs in "
        "ONNX Runtime without one"
    )
    try:
        trt = require("tensorrt")
    except MissingExtra as error:
        raise MissingExtra(error.message, hint=hint) from None
    if not torch.cuda.is_available():
        raise MissingExtra("TensorRT needs an NVIDIA GPU, and PyTorch finds none", hint=hint)
    if int(trt.__version__.partition(".")[0]) < 10:
        raise MissingExtra(f"this needs TensorRT 10, {trt.__version__} is installed", hint=hint)
    return trt


def export_to_tensorrt(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    fp16: bool = False,
    int8: bool = False,
    max_batch_size: int = 8,
    min_length: int = 1,
    opt_length: int = 128,
    max_length: int = 1024,
    workspace_gb: float = 4,
    calibration: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    tolerance: float | None = None,
    force: bool = False,
) -> ExportReport:
    """Build an engine, compare it with ONNX Runtime on the float32 graph, and publish it when it is right.

    Precision is written into the graph; the network is strongly typed.

    Args:
        onnx_path: A float32 graph.
        engine_path: The engine.
        fp16: Convert the graph to float16, inputs and outputs excepted.
        int8: Quantise it; needs ``calibration``.
        max_batch_size: Largest batch.
        min_length: Shortest sequence.
        opt_length: Length the engine is tuned for.
        max_length: Longest sequence.
        workspace_gb: Memory the builder may use, GiB.
        calibration: Inputs, name → array, that show which values occur.
        tolerance: Largest absolute error, instead of 1e-3 (fp16: 1e-2).
        force: Whether to replace ``engine_path``.

    Raises:
        MissingExtra: TensorRT or a GPU is missing.
        UsageError: ``engine_path`` exists, or options contradict each other.
        HilmError: TensorRT cannot parse or build the graph.
    """
    trt = require_tensorrt()
    source, engine_path = Path(onnx_path), Path(engine_path)
    if (fp16 and int8) or (int8 and not calibration):
        raise UsageError(
            "int8 needs calibration inputs, and goes without fp16", hint="calibration=[{name: array}]"
        )
    check_free(engine_path, force=force)
    started = time.perf_counter()
    precision = "float16" if fp16 else "int8" if int8 else "float32"
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    with staged(engine_path) as part, tempfile.TemporaryDirectory() as scratch:
        graph = prepared(source, Path(scratch) / source.name, precision, calibration)
        profile = {
            0: (1, max(1, max_batch_size // 2), max_batch_size),
            1: (min_length, opt_length, max_length),
        }
        part.write_bytes(build(trt, graph, profile, workspace_gb))
        report = compared(trt, part, source, (min_length, opt_length, max_length), max_batch_size, limit)
        if report.ok:
            publish(part, engine_path)
        model = onnx.load(source, load_external_data=False)
        return ExportReport(
            path=str(engine_path),
            files=(str(engine_path),),
            precision=precision,
            opset=next(entry.version for entry in model.opset_import if not entry.domain),
            nodes=len(model.graph.node),
            bytes=(engine_path if report.ok else part).stat().st_size,
            seconds=time.perf_counter() - started,
            **measured(report),
        )


def export_model_to_tensorrt(
    model: PreTrainedModel | str | Path,
    engine_path: str | Path,
    *,
    max_length: int | None = None,
    **options: Any,  # noqa: ANN401 - those of export_to_tensorrt
) -> ExportReport:
    """Build an engine from an ONNX graph or, by way of a verified one, from a model.

    Raises:
        MissingExtra: TensorRT or a GPU is missing.
        VerificationError: The ONNX graph is not right.
    """
    require_tensorrt()
    check_free(Path(engine_path), force=options.get("force", False))
    end = max_length or LONGEST
    options |= {"max_length": end, "opt_length": min(128, end)}
    if str(model).endswith(".onnx"):
        return export_to_tensorrt(str(model), engine_path, **options)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        report = export_to_onnx(model, graph, max_length=max_length)
        if not report.ok:
            raise VerificationError(
                f"the ONNX graph differs from the model by {report.max_abs_error:.3g}",
                hint="hilm export onnx tells more",
            )
        return export_to_tensorrt(graph, engine_path, **options)


class Calibration(CalibrationDataReader):
    """Hands out calibration inputs one by one."""

    def __init__(self, inputs: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        self.left = iter(inputs)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the next inputs, None at the end."""
        return next(self.left, None)


def prepared(
    source: Path, out: Path, precision: str, calibration: Sequence[Mapping[str, NDArray[Any]]] | None
) -> Path:
    """Write the precision into a copy of the graph; float32 is the graph itself."""
    if precision == "float32":
        return source
    if precision == "int8":
        quantize_static(source, out, Calibration(calibration or ()), use_external_data_format=True)
        return out
    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save_model(model, out, save_as_external_data=True, location=f"{out.name}.data")
    return out


def build(trt: Any, graph: Path, profile: Mapping[int, tuple[int, ...]], workspace_gb: float) -> bytes:  # noqa: ANN401
    """Build a serialised engine with one profile: axis → smallest, typical and largest size.

    Raises:
        HilmError: TensorRT cannot parse or build the graph.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise HilmError(f"TensorRT cannot read {graph.name}: {reasons}", hint="use the ONNX graph itself")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace_gb * 2**30))
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        sizes = [
            [profile[min(axis, 1)][end] if size < 0 else size for axis, size in enumerate(value.shape)]
            for end in range(3)
        ]
        shapes.set_shape(value.name, *sizes)
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise HilmError(
            f"TensorRT built no engine from {graph.name}", hint="raise workspace_gb or lower max_length"
        )
    return bytes(engine)


class Engine:
    """A loaded engine; buffers are PyTorch tensors on the GPU."""

    def __init__(self, trt: Any, path: Path) -> None:  # noqa: ANN401 - an optional module without types
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names]
        self.inputs = [name for name, taken in zip(names, inputs, strict=True) if taken]
        self.outputs = {
            name: getattr(torch, np.dtype(trt.nptype(self.engine.get_tensor_dtype(name))).name)
            for name, taken in zip(names, inputs, strict=True)
            if not taken
        }

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tensors of the GPU and wait."""
        held = {name: inputs[name].contiguous() for name in self.inputs}
        for name, value in held.items():
            self.context.set_input_shape(name, tuple(value.shape))
        for name, dtype in self.outputs.items():
            shape = tuple(self.context.get_tensor_shape(name))
            held[name] = torch.empty(shape, dtype=dtype, device="cuda")
        for name, value in held.items():
            self.context.set_tensor_address(name, value.data_ptr())
        stream = torch.cuda.current_stream()
        self.context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return {name: held[name] for name in self.outputs}


def compared(trt: Any, path: Path, source: Path, lengths: Sequence[int], batch: int, tolerance: float) -> Any:  # noqa: ANN401
    """Compare an engine with its graph in ONNX Runtime at the profile's lengths, batch 1 and the largest."""
    engine, session = Engine(trt, path), open_session(source)
    runs, shapes = [], []
    for rows, length in zip((1, batch, 1), lengths, strict=True):
        random = np.random.default_rng(length)
        inputs = {
            value.name: np.ones((rows, length), np.int64)
            if "mask" in value.name
            else random.integers(0, 2, (rows, length))
            for value in session.get_inputs()
        }
        answers = engine({name: torch.from_numpy(value).cuda() for name, value in inputs.items()})
        for name, value in run(session, inputs).items():
            runs.append(difference(value, answers[name].float().cpu().numpy(), None))
        shapes.append((rows, length))
    return summarise(path, runs, shapes, tolerance)


def benchmark_tensorrt_speedup(
    model: PreTrainedModel | str | Path,
    engine_path: str | Path,
    *,
    batch: int = 1,
    length: int = 128,
    runs: int = 50,
) -> SpeedReport:
    """Time PyTorch and an engine on the same GPU and inputs, after warming up.

    Raises:
        MissingExtra: TensorRT or a GPU is missing.
    """
    trt = require_tensorrt()
    engine, loaded = Engine(trt, Path(engine_path)), load_model(model).cuda()
    inputs = {name: value.cuda() for name, value in sample_inputs(loaded, batch, length).items()}
    with evaluating(loaded):
        pytorch = median_milliseconds(lambda: (loaded(**inputs), torch.cuda.synchronize()), runs)
    tensorrt = median_milliseconds(lambda: engine(inputs), runs)
    return SpeedReport(pytorch, tensorrt, pytorch / tensorrt, torch.cuda.get_device_name())
