"""A folder with all a runtime needs: graphs, configuration, tokenizer, and the figures they passed with."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnxruntime.quantization import quantize_dynamic

from hilm.errors import UsageError
from hilm.models.resnet_bk import ResNetBKForCausalLM
from hilm.ship.onnx_export import ExportReport, described, export_to_onnx, quietly
from hilm.ship.onnx_verify import verify_onnx_model
from hilm.ship.publication import check_free, publish, staged
from hilm.ship.tensorrt_export import export_to_tensorrt, require_tensorrt
from hilm.ship.torch_model import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INT8_AGREEMENT = 0.9
"""Share of tokens whose likeliest successor an int8 graph must keep; its error is reported, not bounded."""


@dataclass(frozen=True, slots=True)
class DeploymentReport:
    """What a deployment folder holds.

    Attributes:
        path: The folder; nothing is there unless ``ok``.
        exports: Name of the file → its report.
        ok: Whether all of them are.
    """

    path: str
    exports: dict[str, ExportReport]
    ok: bool

    def __bool__(self) -> bool:
        return self.ok


def export_model_for_deployment(
    model: PreTrainedModel | str | Path,
    out_dir: str | Path,
    *,
    formats: Sequence[str] = ("onnx",),
    quantize: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tolerance: float | None = None,
    max_length: int | None = None,
) -> DeploymentReport:
    """Export a model in every way it can be served, verify each, and publish the folder when all are right.

    Args:
        model: A model, its folder or its Hub id.
        out_dir: A new folder: model.onnx, for causal ResNet-BK also step.onnx, config.json, report.json.
        formats: "onnx", and "tensorrt" for model.engine.
        quantize: "int8" adds model-int8.onnx, with dynamically quantised matrix products.
        tokenizer: Saved beside the graphs.
        tolerance: Largest absolute error of the float32 graphs.
        max_length: Longest sequence verified.

    Raises:
        UsageError: ``out_dir`` exists, or an option is unknown.
        MissingExtra: TensorRT is asked for, and it or a GPU is missing.
        VerificationError: ONNX Runtime refuses a graph.
    """
    out = Path(out_dir)
    if set(formats) - {"onnx", "tensorrt"} or quantize not in {None, "int8"}:
        raise UsageError(f"cannot make {', '.join(formats)}, {quantize}", hint="onnx, tensorrt; int8")
    check_free(out, force=False)
    if "tensorrt" in formats:
        require_tensorrt()
    loaded = load_model(model)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=made(out.parent)) as scratch:
        part = Path(scratch) / out.name
        limits: dict[str, Any] = {"tolerance": tolerance}
        exports = {"model.onnx": export_to_onnx(loaded, part / "model.onnx", max_length=max_length, **limits)}
        if isinstance(loaded, ResNetBKForCausalLM):
            exports["step.onnx"] = export_to_onnx(loaded, part / "step.onnx", graph="step", **limits)
        if quantize and exports["model.onnx"].ok:
            exports["model-int8.onnx"] = quantized(loaded, part / "model.onnx", max_length)
        if "tensorrt" in formats and exports["model.onnx"].ok:
            exports["model.engine"] = export_to_tensorrt(part / "model.onnx", part / "model.engine")
        report = DeploymentReport(str(out), moved(exports, out), all(exports.values()))
        if report.ok:
            loaded.config.save_pretrained(part)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
            (part / "report.json").write_text(json.dumps(dataclasses.asdict(report), indent=2))
            part.rename(out)
    return report


def made(folder: Path) -> Path:
    """Return a folder, made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def moved(exports: dict[str, ExportReport], out: Path) -> dict[str, ExportReport]:
    """Name the files where they will be."""
    return {
        name: dataclasses.replace(
            report, path=str(out / name), files=tuple(str(out / Path(file).name) for file in report.files)
        )
        for name, report in exports.items()
    }


def quantized(model: PreTrainedModel, path: Path, max_length: int | None) -> ExportReport:
    """Quantise a graph's matrix products to 8 bits beside it; what it must keep is the likeliest token."""
    out = path.with_name("model-int8.onnx")
    with staged(out) as part:
        graph = onnx.load(path)
        forget_shapes(graph.graph)
        with quietly():
            quantize_dynamic(graph, part, use_external_data_format=True)
        checked = verify_onnx_model(model, part, max_length=max_length, tolerance=float("inf"))
        report = dataclasses.replace(
            described(out, part, "int8", checked, 0.0), ok=checked.top1_agreement >= INT8_AGREEMENT
        )
        if report.ok:
            publish(part, out)
    return report


def forget_shapes(graph: onnx.GraphProto, *, loop: bool = False) -> None:
    """Drop inferred shapes: the quantiser infers them again, and trips over those inside loops."""
    del graph.value_info[:]
    for value in [*graph.input, *graph.output] if loop else ():
        value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                forget_shapes(attribute.g, loop=True)
