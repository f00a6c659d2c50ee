"""``hilm data``: look at rows to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click
import yaml

from hilm.cli import options, output
from hilm.cli.output import clean, count, elide, share, table
from hilm.errors import UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from hilm.cli.output import Document
    from hilm.data import DataConfig

    Function = TypeVar("Function", bound=Callable[..., Any])

EXAMPLES = (
    "hilm data preview train.csv",
    "hilm data load train.jsonl --map strip --filter 'min_chars: 10' --method sft",
    "hilm data stats train.parquet --eval test.parquet --tokenizer ./model",
)

MAPS = "Change rows, in YAML, repeatable: lower, strip, rename, keep, drop or template."
FILTERS = "Keep rows, in YAML, repeatable: min_chars, max_chars, not_empty, regex, dedupe or sample."


def _source(function: Function) -> Function:
    """Add the paths, and what is done to their rows."""
    for option in (
        click.option("--streaming", is_flag=True, help="Read rows as they are used."),
        click.option("--filter", "filters", multiple=True, metavar="STEP", help=FILTERS),
        click.option("--map", "maps", multiple=True, metavar="STEP", help=MAPS),
        click.option("--columns", metavar="{NEW: OLD}", help="Rename columns first."),
        click.option("--eval", "evaluated", metavar="FILE", help="Rows to evaluate on, or their split."),
        click.option("--split", default="train", show_default=True, help="Of a data set on the Hub."),
        click.option("--name", help="Configuration of a data set on the Hub."),
        click.argument("paths", nargs=-1, required=True, metavar="PATH…"),
    ):
        option(function)
    return options.switches(function)


def _configure(flags: dict[str, Any]) -> DataConfig:
    """Take the flags of :func:`_source` out of a command's options."""
    datasets = require("datasets")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(50)  # what it logs is raised as well
    try:
        maps, filters = (tuple(map(yaml.safe_load, flags[kind])) for kind in ("maps", "filters"))
        columns = yaml.safe_load(flags["columns"] or "{}")
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML: {error}", hint="--filter 'min_chars: 10'") from error
    config: DataConfig = require("hilm.data").DataConfig(
        flags["paths"][0] if len(flags["paths"]) == 1 else flags["paths"],
        flags["name"],
        flags["split"],
        flags["evaluated"],
        columns,
        maps,
        filters,
        flags["streaming"],
    )
    return config


@click.group(cls=options.Group, examples=EXAMPLES)
def data() -> None:
    """Read, shape and measure rows of csv, tsv, json, jsonl, parquet or text files, or of the Hub."""


@data.command(cls=options.Command, examples=EXAMPLES[1:2])
@_source
@click.option("--method", metavar="METHOD", help="Check that the columns are those hilm fit METHOD needs.")
def load(*, method: str | None, **flags: Any) -> None:  # noqa: ANN401 - of _source
    """Read all rows and say what they are: how many, of which columns, with which digest."""
    config, room = _configure(flags), require("hilm.data")
    dataset = room.load_data(config)
    columns = room.columns_of(dataset)
    used = room.check_columns(method, columns) if method else None
    digest = room.rows_sha256(dataset)
    document = {
        "rows": sum(1 for _ in room.rows_of(dataset)),
        "columns": columns,
        "used": used,
        "sources": room.source_digests(config),
        "rows_sha256": digest,
    }
    output.emit(document, loaded)


def loaded(document: Document) -> str:
    """Write what was read."""
    sources = [source.get("path") or f"{source['id']}@{source['commit']}" for source in document["sources"]]
    facts = {
        "rows": count(document["rows"]),
        "columns": clean(", ".join(f"{name} ({kind})" for name, kind in document["columns"].items())),
        "sources": clean(", ".join(sources)),
        "rows SHA-256": document["rows_sha256"],
    }
    return output.facts(facts | ({"trains on": ", ".join(document["used"])} if document["used"] else {}))


@data.command(cls=options.Command, examples=EXAMPLES[:1])
@_source
@click.option("--limit", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Rows.")
def preview(*, limit: int, **flags: Any) -> None:  # noqa: ANN401 - of _source
    """Show the first rows."""
    output.emit(require("hilm.data").preview(_configure(flags), limit=limit), previewed)


def previewed(document: Document) -> str:
    """Write rows as a table, cells cut."""
    columns = document["columns"]
    rows = [[elide(clean(str(row[name])), 40) for name in columns] for row in document["rows"]]
    return table([clean(f"{name} ({kind})") for name, kind in columns.items()], rows)


@data.command(cls=options.Command, examples=EXAMPLES[2:])
@_source
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Rows read. [default: all]")
@click.option("--tokenizer", metavar="MODEL", help="Measure texts in tokens of this one as well.")
@click.option(
    "--max-length", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens that fit."
)
def stats(*, limit: int | None, tokenizer: str | None, max_length: int, **flags: Any) -> None:  # noqa: ANN401
    """Measure the rows: nulls, duplicates, lengths, labels, rows that are evaluated on too."""
    config = _configure(flags)
    document = require("hilm.data").stats(config, limit=limit, tokenizer=tokenizer, max_length=max_length)
    output.emit(document, measured)


def measured(document: Document) -> str:
    """Write figures column by column."""
    rows = []
    for name, column in document["columns"].items():
        values = column.get("values", {})
        lengths = column.get("tokens") or column.get("characters")
        rows.append(
            [
                clean(name),
                column["type"],
                count(column["nulls"]),
                "/".join(map(str, lengths)) if lengths else output.ABSENT,
                "tokens" if "tokens" in column else "characters" if lengths else output.ABSENT,
                output.figure(100 * column["too_long"]) if "too_long" in column else output.ABSENT,
                elide(clean(", ".join(f"{value}: {n}" for value, n in values.items()))) or output.ABSENT,
            ]
        )
    columns = ["column", "type", ">nulls", ">0/50/90/99/100 %", "of", ">% too long", "values"]
    total, twice = document["rows"], document["duplicates"]
    lines = [f"{count(total)} rows, {count(twice)} of them there before ({share(twice, total)})"]
    if document["overlap"] is not None:
        lines.append(f"{count(document['overlap'])} rows to evaluate on are trained on too")
    return "\n".join([*lines, "", table(columns, rows)])
