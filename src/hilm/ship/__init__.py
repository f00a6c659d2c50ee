"""Models leave: as ONNX graphs and TensorRT engines, verified before they are published, and to the Hub."""

from __future__ import annotations

from importlib import import_module

from hilm.extras import require

_EXPORT = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
_HOMES = {
    "BenchReport": "benchmark",
    "bench": "benchmark",
    "DeploymentReport": "deployment",
    "export_model_for_deployment": "deployment",
    "ExportReport": "onnx_export",
    "export_to_onnx": "onnx_export",
    "OptimizationReport": "onnx_optimize",
    "optimize_onnx_model": "onnx_optimize",
    "VerificationReport": "onnx_verify",
    "verify_onnx_model": "onnx_verify",
    "OnnxStreamer": "state_graph",
    "SpeedReport": "tensorrt_export",
    "benchmark_tensorrt_speedup": "tensorrt_export",
    "export_model_to_tensorrt": "tensorrt_export",
    "export_to_tensorrt": "tensorrt_export",
    "CardFacts": "model_card",
    "build": "model_card",
    "diff": "model_card",
    "check": "card_check",
    "check_base": "card_lineage",
    "create_model_card": "card_facts",
    "gather": "card_facts",
    "index_organisation": "organisation",
    "pull": "download",
    "plan_push": "upload",
    "push": "upload",
    "push_batch": "batch",
    "batch_upload_models": "batch",
    "upload_model_to_hub": "batch",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the table above


def __getattr__(name: str) -> object:
    """Import what is asked for; only exporting needs the extra.

    Raises:
        MissingExtra: A package that exporting needs is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'hilm.ship' has no attribute {name!r}")
    home = _HOMES[name]
    if home.startswith(("bench", "deploy", "onnx", "state", "tensorrt")):
        for module in _EXPORT:
            require(module)
    return getattr(import_module(f"hilm.ship.{home}"), name)
