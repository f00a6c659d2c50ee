"""``hilm report``: what reels cost and lose, beside other codecs on the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import hilm
from hilm.cli import options, output
from hilm.cli.filming import find_reel, find_store
from hilm.cli.output import ABSENT, clean, elide, figure, more, size, table
from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hilm.cli.output import Document


@click.command(
    cls=options.Command,
    examples=(
        "hilm report minilm",
        "hilm report minilm.reel.mp4 --against ./all-MiniLM-L6-v2 --picture rates.png",
        "hilm report 2bit.mp4 3bit.mp4 4bit.mp4 --against ./gpt2 --json",
    ),
)
@click.argument("reels", nargs=-1, metavar="REEL…")
@click.option("--against", metavar="MODEL", help="What was rounded. [default: what the store has]")
@options.base("What a delta was taken from. [default: what the store has]")
@click.option("--no-others", is_flag=True, help="Leave other codecs out, which takes no time.")
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw errors over bits as PNG."
)
@options.storage_dir
@options.switches
def report(
    reels: tuple[str, ...],
    *,
    against: str | None,
    base: str | None,
    no_others: bool,
    picture: Path | None,
    storage_dir: Path | None,
) -> None:
    """Measure what reels cost and lose, beside other codecs on the same tensors.

    REEL is a file, or the name of a model in the store. Rounded weights are compared with llama.cpp's
    formats, nf4 and int4; exact ones with zstd and ZipNN, where these are installed.
    """
    if not reels:
        raise UsageError("no reel to report on", hint="name a reel: hilm report model.reel.mp4")
    paths = [find_reel(reel, storage_dir, "small", "delta", "archive") for reel in reels]
    with output.progress() as progress:
        document = hilm.report(
            paths,
            against=against,
            base=base,
            others=not no_others,
            picture=picture,
            store=find_store(storage_dir),
            progress=progress,
        )
    for reel in document["reels"]:
        for name, reason in reel["unavailable"].items():
            output.note(f"no comparison with {name}: {reason}")
    if any(reel["rounded"] for reel in document["reels"]):
        output.note("NMSE is no measure of how well a model still does its task")
    output.emit(document, reported)


def reported(document: Document) -> str:
    """Write each reel's totals and its tensors."""
    parts = ["\n".join(_reported(reel)) for reel in document["reels"]]
    drawn = [f"drawn in {clean(document['picture'])}"] if document["picture"] else []
    return "\n\n".join(parts + drawn)


def _reported(reel: Document) -> Iterator[str]:
    bits = f"{figure(reel['bits_per_weight'])} bits/weight with all files but the film"
    yield from (
        output.paint(clean(Path(reel["reel"]).name), bold=True)
        + f"  {reel['mode']}, {size(reel['bytes'])}, {bits}",
        "",
    )
    for kind in ("rounded", "exact"):
        if reel[kind] is not None:
            yield from (_totals(kind, reel[kind]), "")
    tensors = reel["tensors"]
    yield _tensors(tensors[: output.ROWS])
    yield from more(len(tensors), output.ROWS, "--json lists all")


def _totals(kind: str, total: Document) -> str:
    """Write the totals of one kind of tensors, hilm first, then by what it saves, least first."""
    columns = [f"{total['tensors']:,} {kind}", ">bits/weight"]
    others = sorted(total["others"].items(), key=lambda item: item[1]["saved"])
    rows = [["hilm", figure(total["bits_per_weight"]), *_losses(total), ""]]
    rows += [
        [name, figure(other["bits_per_weight"]), *_losses(other), _saved(other["saved"])]
        for name, other in others
    ]
    if kind == "rounded":
        return table([*columns, ">NMSE", ">max error", ">cosine", ">above R(D)", "at equal error"], rows)
    return table([*columns, ""], [[row[0], row[1], row[-1]] for row in rows])


def _losses(figures: Document) -> list[str]:
    return [figure(figures.get(key)) for key in ("nmse", "max_abs", "cosine", "gap")]


def _saved(bits: float | None) -> str:
    if bits is None:
        return ABSENT
    return f"hilm {abs(bits):.3f} {'smaller' if bits >= 0 else 'LARGER'}"


def _tensors(tensors: Iterable[Document]) -> str:
    rows = [
        [
            elide(clean(tensor["name"])),
            "x".join(map(str, tensor["shape"])) or "scalar",
            tensor["coder"],
            figure(tensor["bits_per_weight"]),
            *_losses(tensor),
        ]
        for tensor in tensors
    ]
    columns = ["tensor", "shape", "coder", ">bits/weight", ">NMSE", ">max error", ">cosine", ">above R(D)"]
    return table(columns, rows)
