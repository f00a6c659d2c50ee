"""``hilm report``: what reels cost and lose, beside other codecs on the same tensors."""

from __future__ import annotations

import math
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

_LOSSES = (">NMSE", ">max error", ">cosine", ">above R(D)")


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
@click.option("--no-others", is_flag=True, help="Leave other codecs out; nothing is decoded.")
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
    yield _tensors(reel["tensors"][: output.ROWS], losses=reel["rounded"] is not None)
    yield from more(len(reel["tensors"]), output.ROWS, "--json lists all")


def _totals(kind: str, total: Document) -> str:
    """Write the totals of one kind of tensors, hilm first, then by what it saves, least first."""
    others = sorted(
        total["others"].items(), key=lambda item: -math.inf if item[1]["saved"] is None else item[1]["saved"]
    )
    rows = [("hilm", total, ""), *((name, other, _saved(other["saved"])) for name, other in others)]
    columns = [f"{total['tensors']:,} {kind}", ">bits/weight"]
    if kind == "exact":
        return table([*columns, ""], [[name, figure(f["bits_per_weight"]), saved] for name, f, saved in rows])
    body = [[name, figure(f["bits_per_weight"]), *_losses(f), saved] for name, f, saved in rows]
    return table([*columns, *_LOSSES, "at equal error"], body)


def _losses(figures: Document) -> list[str]:
    return [figure(figures.get(key)) for key in ("nmse", "max_abs", "cosine", "gap")]


def _saved(bits: float | None) -> str:
    if bits is None:
        return ABSENT
    return f"hilm {abs(bits):.3f} {'smaller' if bits >= 0 else 'LARGER'}"


def _tensors(tensors: Iterable[Document], *, losses: bool) -> str:
    rows = [
        [
            elide(clean(tensor["name"])),
            "x".join(map(str, tensor["shape"])) or "scalar",
            tensor["coder"],
            figure(tensor["bits_per_weight"]),
            *(_losses(tensor) if losses else ()),
        ]
        for tensor in tensors
    ]
    return table(["tensor", "shape", "coder", ">bits/weight", *(_LOSSES if losses else ())], rows)
