"""``hilm export``: models for other runtimes, verified; ``hilm bench``: how fast they are here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilm.cli import options, output
from hilm.cli.output import clean, facts, figure, seconds, size, table
from hilm.errors import UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from types import ModuleType

    from hilm.cli.output import Document

FORMATS = ("onnx", "tensorrt", "all", "verify")


@click.command(
    cls=options.Command,
    examples=(
        "hilm export onnx ./bert bert.onnx",
        "hilm export onnx ./resnet-bk step.onnx --graph step",
        "hilm export all ./model ./deployment --quantize int8",
        "hilm export tensorrt model.onnx model.engine --fp16",
        "hilm export verify ./bert bert.onnx --json",
    ),
)
@click.argument("form", metavar="onnx|tensorrt|all|verify", type=click.Choice(FORMATS))
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--tolerance", type=click.FloatRange(min=0), metavar="E", help="Largest absolute error. [default: 1e-5]"
)
@click.option("--max-length", type=click.IntRange(min=1), metavar="N", help="Longest sequence. [1024]")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float64", "float16", "auto"]),
    default="float32",
    help="auto is float64 where float32 is not close enough. [default: float32]",
)
@click.option(
    "--graph",
    type=click.Choice(["full", "step", "chunk"]),
    default="full",
    help="ResNet-BK: step and chunk carry a state. [default: full]",
)
@click.option("--optimize", type=click.Choice(["basic", "extended", "all"]), help="ONNX Runtime's rewriting.")
@click.option("--quantize", type=click.Choice(["int8"]), help="With all: add a graph of 8-bit weights.")
@click.option("--fp16", is_flag=True, help="With tensorrt: compute in float16.")
@click.option("--force", is_flag=True, help="Replace OUT.")
@options.switches
def export(form: str, model: str, out: Path, **chosen: Any) -> None:  # noqa: ANN401 click's options
    """Export MODEL to OUT, compare it with PyTorch, write it only when it agrees; else exit 3.

    MODEL is a transformers folder or a Hub id; tensorrt also takes an ONNX graph. OUT is a file, for all a
    new folder, for verify the graph to check. Batch and length are dynamic.
    """
    check_options(form, chosen)
    ship = shipping()
    common = {"tolerance": chosen["tolerance"], "max_length": chosen["max_length"]}
    if form == "all":
        report = ship.export_model_for_deployment(model, out, quantize=chosen["quantize"], **common)
    elif form == "verify":
        kept = {name: value for name, value in common.items() if value is not None}
        report = ship.verify_onnx_model(model, out, **kept)
    elif form == "tensorrt":
        report = ship.export_model_to_tensorrt(
            model, out, fp16=chosen["fp16"], force=chosen["force"], **common
        )
    else:
        names = ("precision", "graph", "optimize", "force")
        report = ship.export_to_onnx(model, out, **{name: chosen[name] for name in names}, **common)
    output.emit(dataclasses.asdict(report), described)
    if not report.ok:
        click.get_current_context().exit(3)


def shipping() -> ModuleType:
    """Return the room, and keep the progress bars of transformers off stderr."""
    ship = require("hilm.ship")
    require("transformers.utils.logging").disable_progress_bar()
    return ship


def check_options(form: str, chosen: dict[str, Any]) -> None:
    """Refuse an option another form obeys.

    Raises:
        UsageError: One is given.
    """
    owners = {"precision": "onnx", "graph": "onnx", "optimize": "onnx", "quantize": "all", "fp16": "tensorrt"}
    plain = {"precision": "float32", "graph": "full", "optimize": None, "quantize": None, "fp16": False}
    wrong = [name for name, owner in owners.items() if chosen[name] != plain[name] and form != owner]
    if form not in {"onnx", "tensorrt"} and chosen["force"]:
        wrong.append("force")
    if wrong:
        raise UsageError(f"{form} takes no --{wrong[0]}", hint="hilm export --help shows what each takes")


def described(document: Document) -> str:
    """Write each export and how it compares."""
    exports = document.get("exports", {"": document})
    return "\n\n".join(facts(figures(report)) for report in exports.values())


def figures(report: Document) -> dict[str, str]:
    """Name a report's figures for people."""
    lengths = ", ".join(map(str, report["lengths"])) or output.ABSENT
    shown = {
        "path": clean(report["path"]),
        "verdict": "agrees" if report["ok"] else "does NOT agree; not written",
        "largest error": f"{figure(report['max_abs_error'])}, allowed {figure(report['tolerance'])}",
        "relative to the largest value": figure(report["max_rel_error"]),
        "same first choice": figure(report["top1_agreement"]),
        "lengths compared": lengths,
    }
    if "bytes" in report:
        shown |= {
            "precision": report["precision"],
            "nodes": str(report["nodes"]),
            "size": size(report["bytes"]),
            "time": seconds(report["seconds"]),
        }
    return shown


@click.command(
    cls=options.Command, examples=("hilm bench ./model", "hilm bench ./model --lengths 16 128 --json")
)
@click.argument("model")
@click.option(
    "--lengths", cls=options.Several, type=click.IntRange(min=1), metavar="N…", help="[default: 16 128 512]"
)
@click.option("--batch", type=click.IntRange(min=1), default=1, metavar="N", help="Rows. [default: 1]")
@options.switches
def bench(model: str, lengths: tuple[int, ...], batch: int) -> None:
    """Time MODEL on this machine's processor: PyTorch against ONNX Runtime, the same inputs and threads."""
    report = shipping().bench(model, lengths=lengths or (16, 128, 512), batch=batch)
    output.emit({"model": model, **dataclasses.asdict(report)}, timed)
    if not report.ok:
        click.get_current_context().exit(3)


def timed(document: Document) -> str:
    """Write a table of lengths, and the speed of single steps."""
    rows = [
        [
            str(row["length"]),
            figure(row["torch_ms"]),
            figure(row["onnxruntime_ms"]),
            f"{row['speedup']:.2f} x",
        ]
        for row in document["forward"]
    ]
    lines = [table((">tokens", ">PyTorch ms", ">ONNX Runtime ms", ">faster"), rows)]
    if document["step_tokens_per_second"] is not None:
        lines.append(f"one by one, ONNX Runtime: {document['step_tokens_per_second']:,.0f} tokens/s")
    return "\n".join(lines)
