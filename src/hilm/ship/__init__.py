"""Models leave for other runtimes: ONNX graphs and TensorRT engines, verified before they are published."""

from __future__ import annotations

from hilm.extras import require

for name in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"):
    require(name)

from hilm.ship.benchmark import BenchReport, bench  # noqa: E402 - MissingExtra must come first
from hilm.ship.deployment import DeploymentReport, export_model_for_deployment  # noqa: E402 - the same
from hilm.ship.onnx_export import ExportReport, export_to_onnx  # noqa: E402 - the same
from hilm.ship.onnx_optimize import OptimizationReport, optimize_onnx_model  # noqa: E402 - the same
from hilm.ship.onnx_verify import VerificationReport, verify_onnx_model  # noqa: E402 - the same
from hilm.ship.state_graph import OnnxStreamer  # noqa: E402 - the same
from hilm.ship.tensorrt_export import (  # noqa: E402 - the same
    SpeedReport,
    benchmark_tensorrt_speedup,
    export_model_to_tensorrt,
    export_to_tensorrt,
)

__all__ = [
    "BenchReport",
    "DeploymentReport",
    "ExportReport",
    "OnnxStreamer",
    "OptimizationReport",
    "SpeedReport",
    "VerificationReport",
    "bench",
    "benchmark_tensorrt_speedup",
    "export_model_for_deployment",
    "export_model_to_tensorrt",
    "export_to_onnx",
    "export_to_tensorrt",
    "optimize_onnx_model",
    "verify_onnx_model",
]
