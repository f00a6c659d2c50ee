"""``hilm parity``: where do two implementations part, and would we notice?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilm.cli import inputs, options, output
from hilm.cli.output import clean, figure, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hilm.cli.output import Document
    from hilm.parity.inputs import Item
    from hilm.parity.sides import Side

    Function = Callable[..., Any]


@click.group(
    cls=options.Group,
    examples=("hilm parity run ./vit ./vit.onnx --input cat=cat.jpg", "hilm parity selftest ./vit"),
)
def parity() -> None:
    """Prove that two implementations of one model agree, or name the first place where they part."""


def input_flag(*, required: bool) -> Callable[[Function], Function]:
    """Add --input."""
    text = "A picture, a clip, or an npz file of the model's arguments; repeatable."
    return click.option("--input", "given", multiple=True, required=required, metavar="NAME=PATH", help=text)


@parity.command(
    cls=options.Command,
    examples=(
        "hilm parity run ./vit ./vit.onnx --input cat=cat.jpg",
        "hilm parity run ./bert ./bert-merged --input text=tokens.npz --json",
        "hilm parity run ./vit ./vit --candidate-weights reel:vit.reel.mp4 --min-sqnr 30 --input cat=cat.jpg",
    ),
)
@click.argument("reference")
@click.argument("candidate")
@input_flag(required=True)
@click.option("--mode", type=click.Choice(["free", "local", "both"]), default="both", show_default=True)
@click.option(
    "--precision", type=click.Choice(["float32", "deployed", "both"]), default="both", show_default=True
)
@click.option(
    "--require", type=click.Choice(["both", "compatible", "floor"]), help="Verdicts that must hold."
)
@click.option("--k", type=float, default=1.5, show_default=True, help="Largest local error over its floor.")
@click.option("--k-token", type=float, default=2.0, show_default=True, help="The same of the worst tokens.")
@click.option("--k-free", type=float, default=3.0, show_default=True, help="The same of accumulated errors.")
@click.option(
    "--layer", type=int, default=-2, show_default=True, help="Hidden state for the documented rule."
)
@click.option(
    "--min-sqnr", type=float, metavar="DB", help="Of lossy candidates: what the last stage must reach."
)
@click.option(
    "--reference-weights", default="", metavar="SPEC", help="Weights for that architecture instead."
)
@click.option(
    "--candidate-weights", default="", metavar="SPEC", help="The same: reel:FILE, or any checkpoint."
)
@click.option(
    "--blocks", multiple=True, metavar="PATH", help="Stack of layers; twice where the sides differ."
)
@click.option("--no-audit", is_flag=True, help="Run even if weights or buffers differ.")
@inputs.MEMORY
@inputs.reports
@inputs.reading
@options.switches
@click.pass_context
def run(
    context: click.Context,
    /,
    reference: str,
    candidate: str,
    *,
    given: tuple[str, ...],
    **rest: Any,  # noqa: ANN401 - click's
) -> None:
    """Compare stage by stage, against the rounding of the number format; exit code 3 if they do not agree.

    REFERENCE and CANDIDATE are model folders, adapters (ADAPTER or BASE+ADAPTER), ONNX files, dumps, or
    module:package.module:factory.
    """
    from hilm.parity import memory, report  # noqa: PLC0415 only this command pays for it
    from hilm.parity.engine import compare  # noqa: PLC0415
    from hilm.parity.sides import Side  # noqa: PLC0415
    from hilm.parity.verdict import Gates  # noqa: PLC0415

    sides = [Side.parse(reference), Side.parse(candidate)]
    items, fields = read_items(sides, given, rest)
    paths = [side.path for side in sides if side.kind in {"hf", "onnx"}]
    expected = memory.estimate(paths, fields, items, None, rest["memory_limit"])
    blocks = (*rest["blocks"], "", "")[:2] if len(rest["blocks"]) != 1 else rest["blocks"] * 2
    with memory.refusing(expected):
        found = compare(
            sides[0].runner(weights=rest["reference_weights"], blocks=blocks[0]),
            sides[1].runner(weights=rest["candidate_weights"], blocks=blocks[1]),
            items,
            mode=rest["mode"],
            precision=rest["precision"],
            require=rest["require"],
            gates=Gates(rest["k"], rest["k_token"], rest["k_free"], rest["layer"], min_sqnr=rest["min_sqnr"]),
            check_weights=not rest["no_audit"],
        )
    for warning in found.warnings:
        output.note(warning, label="warning", color="yellow")
    inputs.write_report(rest["junit"], report.junit, found)
    inputs.write_report(rest["html"], report.page, found)
    output.emit(found.document(), lambda _: report.console(found))
    if found.verdict != "pass":
        context.exit(3)


def read_items(
    sides: Sequence[Side], given: tuple[str, ...], rest: dict[str, Any]
) -> tuple[list[Item], dict[str, Any]]:
    """Read the inputs as the first side with a config wants them; also return that config."""
    from hilm.parity import inputs as files  # noqa: PLC0415 only these commands pay for it
    from hilm.parity.encoders import fit_reading, read_fields  # noqa: PLC0415

    reading, parsed = inputs.make_reading(rest), files.parse_inputs(given)
    kinds = files.recognise_inputs(parsed)
    path = next((side.path for side in sides if side.kind == "hf"), None)
    fields = {} if path is None else read_fields(path)
    if path is not None and set(kinds) != {"arrays"}:
        reading = fit_reading(path, fields, reading)
    return files.read_inputs(parsed, reading), fields


@parity.command(cls=options.Command, examples=("hilm parity dump ./vit ./dump --input cat=cat.jpg",))
@click.argument("model")
@click.argument("out_dir", type=click.Path(path_type=Path, file_okay=False))
@input_flag(required=True)
@inputs.reading
@options.switches
def dump(model: str, out_dir: Path, *, given: tuple[str, ...], **rest: Any) -> None:  # noqa: ANN401
    """Write every stage of a run, to be compared elsewhere or later: OUT_DIR is a side of hilm parity run."""
    from hilm.parity.runners import write_dump  # noqa: PLC0415 only this command pays for it
    from hilm.parity.sides import Side  # noqa: PLC0415

    side = Side.parse(model)
    write_dump(side.runner(), read_items([side], given, rest)[0], out_dir)
    output.emit({"out": str(out_dir)}, lambda found: f"written to {clean(found['out'])}")


@parity.command(cls=options.Command, examples=("hilm parity selftest", "hilm parity selftest ./vit --json"))
@click.argument("model", required=False)
@input_flag(required=False)
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "both"]), default="both", show_default=True
)
@click.option("--k", type=float, default=1.5, show_default=True, help="Largest local error over its floor.")
@inputs.reading
@options.switches
@click.pass_context
def selftest(
    context: click.Context,
    /,
    model: str | None,
    *,
    given: tuple[str, ...],
    precision: str,
    k: float,
    **rest: Any,  # noqa: ANN401
) -> None:
    """Plant known faults in copies of MODEL, or a built-in one, and say which are caught, and where."""
    from hilm.errors import UsageError  # noqa: PLC0415 only this command pays for it
    from hilm.parity.runners import TorchRunner  # noqa: PLC0415
    from hilm.parity.selftest import selftest as plant  # noqa: PLC0415
    from hilm.parity.sides import Side  # noqa: PLC0415
    from hilm.parity.verdict import Gates  # noqa: PLC0415

    side = Side.parse(model) if model else None
    runner = side.runner() if side else None
    if runner is not None and not isinstance(runner, TorchRunner):
        raise UsageError(f"{model}: faults can be planted in torch models only", hint="give a model folder")
    found = plant(
        runner,
        read_items([side] if side else [], given, rest)[0] if given else None,
        gates=replace(Gates(), k=k),
        precisions=("float32", "bfloat16") if precision == "both" else (precision,),
    )
    for warning in found.warnings:
        output.note(warning, label="warning", color="yellow")
    output.emit(found.document(), tested)
    if not found.ok:
        context.exit(3)


def tested(document: Document) -> str:
    """Write a line per fault, and how many were caught."""
    rows = [
        [
            "yes" if row["caught"] else output.paint("NO", fg="red"),
            clean(row["fault"]),
            row["expected"],
            row["precision"],
            output.elide(clean(row["by"])),
            figure(row["ratio"]),
        ]
        for row in document["faults"]
    ]
    titles = ["as it should", "planted", "must be named", "precision", "was named", ">ratio"]
    return "\n".join(
        [table(titles, rows), "", f"{document['caught']} of {document['planted']} as they should be"]
    )
