"""``hilm lineage`` and ``hilm dedupe``: what came from what, and what is there twice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import ROWS, clean, count, more, paint, share, size, table

if TYPE_CHECKING:
    from hilm.cli.output import Document


@click.command(
    cls=options.Command,
    examples=(
        "hilm lineage",
        "hilm lineage bert-base --picture family.png",
        "hilm lineage ./mystery-model --json",
    ),
)
@click.argument("model", required=False)
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), metavar="PNG", help="Draw the trees."
)
@options.revision
@options.storage_dir
@options.switches
def lineage(
    model: str | None, *, picture: Path | None, revision: str | None, storage_dir: Path | None
) -> None:
    """Show which model comes from which, by fingerprints alone: MODEL's family, or every family of the store.

    An arrow means that the direction is shown by something that is not undone, such as quantising; a plain
    line that two models are related and either may have come first.
    """
    wanted = options.at_revision(model, revision) if model is not None else None
    with output.progress() as progress:
        document = hilm.Store(storage_dir).lineage(wanted, picture=picture, progress=progress)
    output.emit(document, drawn)


def drawn(document: Document) -> str:
    """Draw the trees as text, one model a line."""
    from hilm.lineage.picture import explain, lay_out  # noqa: PLC0415 only text needs it

    lines = lay_out(document["nodes"], document["edges"])
    if not lines:
        return "nothing in this store yet; hilm index MODEL puts something in"
    text, stems = [], [""] * len(lines)
    for number, line in enumerate(lines):
        branch = ""
        if line.parent is not None:
            arrow = "→" if line.edges[0]["direction"] == "shown" else "─"
            branch = f"{stems[line.parent]}{'└' if line.last else '├'}─{arrow} "
            stems[number] = stems[line.parent] + ("    " if line.last else "│   ")
        note = explain(line) or f"{count(line.node['parameters'])} parameters"
        declared = line.node["declared_base"]
        note += f"; declared base: {', '.join(declared)}" if declared else ""
        text.append(f"{branch}{paint(clean(line.node['model']), bold=True)}  {clean(note)}")
    text += ["", "→ derived from   ─ related, direction not shown"] if document["edges"] else []
    return "\n".join([*text, *(f"hint: {clean(hint['sentence'])}" for hint in document["hints"])])


@click.command(cls=options.Command, examples=("hilm dedupe", "hilm dedupe --storage-dir experiment_1 --json"))
@click.option("--all", "everything", is_flag=True, help="List every model.")
@click.option("--measure", is_flag=True, help="Write the deltas, to a temporary place, and measure them.")
@options.storage_dir
@options.switches
def dedupe(*, everything: bool, measure: bool, storage_dir: Path | None) -> None:
    """Show which models are there twice, or nearly, and what keeping differences instead would save.

    Nothing is deleted. Savings of near duplicates are estimated from fingerprints unless measured.
    """
    with output.progress() as progress:
        document = hilm.Store(storage_dir).dedupe(measure=measure, progress=progress)
    output.emit(document, lambda result: repeated(result, everything=everything))


def repeated(document: Document, *, everything: bool) -> str:
    """Write the groups of equal models, then those that differ little, with bytes."""
    lines = [
        f"{' = '.join(map(clean, group['models']))}  {size(group['saved'])} twice"
        for group in document["exact"]
    ]
    near = document["near"] if everything else document["near"][:ROWS]
    if near:
        rows = [
            [
                clean(entry["model"]),
                clean(entry["base"]),
                entry["relation"],
                size(entry["bytes"]),
                f"{entry['bits_per_weight_estimate']:.1f}",
                share(entry["saved_estimate"], entry["bytes"]),
                output.ABSENT if entry["saved"] is None else share(entry["saved"], entry["bytes"]),
            ]
            for entry in near
        ]
        columns = [
            "model",
            "differs little from",
            "relation",
            ">size",
            ">bits/weight (est.)",
            ">saved (est.)",
            ">measured",
        ]
        lines += ["", table(columns, rows), *more(len(document["near"]), len(near), "--all lists them")]
    total = f"{size(document['exact_bytes'])} in exact duplicates; about "
    total += f"{size(document['near_bytes'])} more if only differences were kept"
    return "\n".join([*lines, "", total]) if lines else "nothing is there twice"
