"""``hilm parity``: where do two implementations part, and would we notice?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hilm.cli import inputs, options, output
from hilm.cli.output import clean, figure, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from hilm.cli.output import Document
    from hilm.parity.inputs import Item

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
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML here.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page here.")
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

    REFERENCE and CANDIDATE are model folders, ONNX files, dumps, or module:package.module:factory.
    """
    from hilm.files import write_file  # noqa: PLC0415
    from hilm.parity import report  # noqa: PLC0415 only this command pays for it
    from hilm.parity.engine import compare  # noqa: PLC0415
    from hilm.parity.sides import open_runner  # noqa: PLC0415
    from hilm.parity.verdict import Gates  # noqa: PLC0415

    items = read_items(reference, given, rest)
    paths = (*rest["blocks"], "", "")[:2] if len(rest["blocks"]) != 1 else rest["blocks"] * 2
    found = compare(
        open_runner(reference, weights=rest["reference_weights"], blocks=paths[0]),
        open_runner(candidate, weights=rest["candidate_weights"], blocks=paths[1]),
        items,
        mode=rest["mode"],
        precision=rest["precision"],
        require=rest["require"],
        gates=Gates(rest["k"], rest["k_token"], rest["k_free"], rest["layer"], min_sqnr=rest["min_sqnr"]),
        check_weights=not rest["no_audit"],
    )
    for warning in found.warnings:
        output.note(warning, label="warning", color="yellow")
    for path, make in ((rest["junit"], report.junit), (rest["html"], report.page)):
        if path is not None:
            write_file(path, make(found).encode())
    output.emit(found.document(), lambda _: report.console(found))
    if found.verdict != "pass":
        context.exit(3)


def read_items(reference: str, given: tuple[str, ...], rest: dict[str, Any]) -> list[Item]:
    """Read the inputs as the reference wants them; arrays are what they are."""
    from hilm.parity.inputs import parse_inputs, read_inputs  # noqa: PLC0415 only these commands pay for it
    from hilm.parity.pictures import recognise  # noqa: PLC0415

    reading, parsed = inputs.make_reading(rest), parse_inputs(given)
    kinds = [kind or recognise(Path(path)) for _, kind, path in parsed]
    path = reference.removeprefix("hf:")
    if set(kinds) != {"arrays"} and (Path(path) / "config.json").exists():
        from hilm.parity.encoders import fit_reading  # noqa: PLC0415 needs transformers

        reading = fit_reading(path, reading)[1]
    return read_inputs(parsed, reading)


@parity.command(cls=options.Command, examples=("hilm parity dump ./vit ./dump --input cat=cat.jpg",))
@click.argument("model")
@click.argument("out_dir", type=click.Path(path_type=Path, file_okay=False))
@input_flag(required=True)
@inputs.reading
@options.switches
def dump(model: str, out_dir: Path, *, given: tuple[str, ...], **rest: Any) -> None:  # noqa: ANN401
    """Write every stage of a run, to be compared elsewhere or later: OUT_DIR is a side of hilm parity run."""
    from hilm.parity.runners import write_dump  # noqa: PLC0415 only this command pays for it
    from hilm.parity.sides import open_runner  # noqa: PLC0415

    write_dump(open_runner(model), read_items(model, given, rest), out_dir)
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
    from hilm.parity.sides import open_runner  # noqa: PLC0415
    from hilm.parity.verdict import Gates  # noqa: PLC0415

    runner = open_runner(model) if model else None
    if runner is not None and not isinstance(runner, TorchRunner):
        raise UsageError(f"{model}: faults can be planted in torch models only", hint="give a model folder")
    found = plant(
        runner,
        read_items(str(model), given, rest) if given else None,
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
