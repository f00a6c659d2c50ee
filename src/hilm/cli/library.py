"""``hilm list``, ``hilm stats``, ``hilm show`` and ``hilm rm``: what the store holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import chance, clean, count, facts, figure, seconds, size, table
from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hilm.cli.output import Document


@click.command(
    "list", cls=options.Command, examples=("hilm list", "hilm list --storage-dir experiment_1 --json")
)
@click.option("--list-models", is_flag=True, hidden=True, expose_value=False)
@options.storage_dir
@options.switches
def list_models(*, storage_dir: Path | None) -> None:
    """List the models in the store."""
    output.emit(hilm.Store(storage_dir).list(), listed)


def listed(document: Document) -> str:
    """Write one line a model."""
    models = document["models"]
    if not models:
        return "nothing in this store yet; hilm encode MODEL or hilm index MODEL puts something in"
    rows = [
        [
            clean(model["model"]),
            count(model["parameters"]),
            model["mode"] or "fingerprint only",
            size(model["bytes"]),
            figure(model["bits_per_weight"]),
        ]
        for model in models
    ]
    return table(["model", ">parameters", "reel", ">size", ">bits/weight"], rows)


@click.command(cls=options.Command, examples=("hilm stats", "hilm stats --json"))
@click.option("--statistics", is_flag=True, hidden=True, expose_value=False)
@options.storage_dir
@options.switches
def stats(*, storage_dir: Path | None) -> None:
    """Show what the store holds, in figures."""
    output.emit(hilm.Store(storage_dir).stats(), described)


@click.command(
    cls=options.Command,
    examples=(
        "hilm show bert-base",
        "hilm show bert-base --sheet bert.png --film bert.mp4",
        "hilm show bert-base.reel.mp4",
        "hilm show run/checkpoint-* --film training.mp4 --difference",
        "hilm show ./gpt2 --picture gpt2.png --figure outliers",
    ),
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option("--chain", is_flag=True, help="List what its reel takes to decode.")
@click.option("--sheet", type=click.Path(path_type=Path), metavar="PNG", help="Draw every tensor's picture.")
@click.option("--film", type=click.Path(path_type=Path), metavar="MP4", help="Write the film of the weights.")
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="PNG", help="Draw the heat map of layers."
)
@click.option(
    "--figure",
    type=click.Choice(["std", "max", "outliers", "zeros", "mean"]),
    default="std",
    show_default=True,
    help="What the heat map shows.",
)
@click.option("--tensor", metavar="NAME", help="Of several models, film this tensor. [default: a large one]")
@click.option("--difference", is_flag=True, help="Of several models, film how they differ from the first.")
@options.storage_dir
@options.switches
def show(
    models: tuple[str, ...],
    *,
    film: Path | None,
    tensor: str | None,
    difference: bool,
    storage_dir: Path | None,
    **drawing: Any,  # noqa: ANN401 - of Store.show
) -> None:
    """Show what the store knows about a model, or what is in a reel; with --sheet and --film, let one see it.

    MODEL is the name of a model in the store or a reel; --sheet and --picture take a path, Hub id or URL as
    well. Several models make a film of one tensor, one frame each: a training run, for instance.
    """
    store = hilm.Store(storage_dir)
    if len(models) == 1 and not (tensor or difference):
        with output.progress() as progress:
            document = store.show(models[0], film=film, **drawing, progress=progress)
    elif film is None or drawing["sheet"] or drawing["picture"] or drawing["chain"]:
        raise UsageError("several models make a film of one tensor", hint="hilm show A B --film FILM.mp4")
    else:
        document = store.film(models, film, tensor=tensor, difference=difference)
    output.emit(document, described)


@click.command("rm", cls=options.Command, examples=("hilm rm bert-base", "hilm rm bert-base --yes --json"))
@click.argument("model")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even if deltas in the store were taken from it.")
@options.storage_dir
@options.switches
def remove(model: str, *, yes: bool, force: bool, storage_dir: Path | None) -> None:
    """Forget a model and delete its reel. Asks first when somebody is at the terminal."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"forget {clean(model)} and delete its reel?", abort=True, err=True)
    output.emit(hilm.Store(storage_dir).remove(model, force=force), described)


UNITS = {"bytes": size, "seconds": seconds, "p_value": chance}
"""Part of a key → how its figure is written."""


def described(document: Document) -> str:
    """Write every figure of a document with its unit, one a line; a list of things as a table below."""
    things = {key: value for key, value in document.items() if is_table(value)}
    rest = {key.replace("_", " "): valued(key, document[key]) for key in document if key not in things}
    return "\n\n".join([facts(rest), *map(tabled, things.values())])


def is_table(value: object) -> bool:
    """Whether a value is a list of things with the same figures."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def tabled(things: Sequence[Document]) -> str:
    """Write things as a table, at most 20 of them; some may lack a figure that others have."""
    keys = list(dict.fromkeys(key for thing in things for key in thing))
    rows = [[valued(key, thing.get(key)) for key in keys] for thing in things[: output.ROWS]]
    columns = [key.replace("_", " ") for key in keys]
    return "\n".join([table(columns, rows), *output.more(len(things), len(rows), "--json lists all")])


def valued(key: str, value: object) -> str:
    """Write one value; its key tells the unit."""
    if isinstance(value, dict):
        return ", ".join(
            f"{clean(str(name))} {valued(f'{key}.{name}', part)}" for name, part in value.items()
        )
    if isinstance(value, list):
        return ", ".join(valued(key, part) for part in value) or output.ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        unit = next((write for word, write in UNITS.items() if word in key), None)
        return (unit or (count if isinstance(value, int) else figure))(value)
    return output.ABSENT if value is None else clean(str(value))
