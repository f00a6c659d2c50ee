"""``hilm inspect`` and ``hilm stream``: what a checkpoint holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import ROWS, clean, count, elide, figure, seconds, share, size, table

if TYPE_CHECKING:
    from hilm.cli.output import Document


@click.command(
    cls=options.Command,
    examples=(
        "hilm inspect ./all-MiniLM-L6-v2",
        "hilm inspect model.safetensors --json | jq .roles",
        "hilm inspect sentence-transformers/all-MiniLM-L6-v2",
    ),
)
@click.argument("model")
@click.option("--all", "everything", is_flag=True, help="List every tensor.")
@options.revision
@options.switches
def inspect(model: str, *, everything: bool, revision: str | None) -> None:
    """Show what a checkpoint holds, read from its headers alone: no weights are loaded.

    MODEL is a folder, a weight file (safetensors, PyTorch, GGUF, ONNX), a Hub id or a URL.
    """
    output.emit(
        hilm.inspect(options.at_revision(model, revision)),
        lambda document: inspected(document, everything=everything),
    )


def inspected(document: Document, *, everything: bool) -> str:
    """Write the roles of a checkpoint's parameters, then its tensors."""
    tensors, parameters = document["tensors"], document["parameters"]
    held, files = sum(tensor["bytes"] for tensor in tensors), len(document["files"])
    roles = sorted(document["roles"].items(), key=lambda item: -item[1])
    shown = tensors if everything else tensors[:ROWS]
    summary = f"{count(parameters)} parameters in {len(tensors):,} tensors, {size(held)}"
    return "\n".join(
        [
            f"{clean(document['model'])}: {summary}" + (f" in {files:,} files" if files > 1 else ""),
            "",
            table(
                ["role", ">parameters", ">share", ""],
                [[role, count(n), share(n, parameters), bar(n, parameters)] for role, n in roles],
            ),
            "",
            table(["tensor", ">shape", "dtype", "role", ">size"], [row(tensor) for tensor in shown]),
            *output.more(len(tensors), len(shown), "--all lists them"),
        ]
    )


def row(tensor: Document) -> list[str]:
    """Write one tensor's line."""
    shape = " \N{MULTIPLICATION SIGN} ".join(map(str, tensor["shape"])) or "scalar"
    return [elide(clean(tensor["name"])), shape, tensor["dtype"], tensor["role"], size(tensor["bytes"])]


def bar(part: float, whole: float, width: int = 24) -> str:
    """Draw a part of the whole."""
    return "█" * round(width * part / whole) if whole else ""


@click.command(
    cls=options.Command,
    examples=(
        "hilm stream ./all-MiniLM-L6-v2",
        "hilm stream ./gpt2 --layers attention mlp --chunk-size 8192",
        "hilm stream ./llama --max-memory 512 --max-params 1000000 --json",
    ),
)
@click.argument("model")
@options.selection
@click.option(
    "--max-memory",
    type=click.FloatRange(min=0, min_open=True),
    default=1024.0,
    show_default=True,
    metavar="MB",
    help="Memory to stay within.",
)
@click.option("--no-adaptive", is_flag=True, help="Keep the chunk size as given, whatever the memory.")
@options.revision
@options.switches
def stream(
    model: str,
    *,
    revision: str | None,
    layers: tuple[str, ...],
    exclude_layers: tuple[str, ...],
    chunk_size: int | None,
    max_params: int | None,
    max_memory: float,
    no_adaptive: bool,
) -> None:
    """Read every weight once, in constant memory, and show its statistics by layer type."""
    with output.progress() as progress:
        document = hilm.stream(
            options.at_revision(model, revision),
            layers=layers or None,
            exclude_layers=exclude_layers or None,
            chunk_size=chunk_size or 1024,
            max_memory_mb=max_memory,
            adaptive=not no_adaptive,
            max_params=max_params,
            progress=progress,
        )
    output.emit(document, streamed)


def streamed(document: Document) -> str:
    """Write what was read and how fast, then the statistics of each layer type."""
    read, total = count(document["processed_parameters"]), count(document["total_parameters"])
    rate = f"{count(document['processing_rate'])} parameters a second"
    rows = [
        [
            role,
            count(layer["parameters"]),
            *(figure(layer[key]) for key in ("mean", "std", "min", "max")),
            share(layer["zeros"], layer["parameters"]),
        ]
        for role, layer in document["layers"].items()
    ]
    facts = {
        "read": f"{read} of {total} parameters ({document['progress_percent']:.1f} %)",
        "chunks": f"{document['chunks']:,}",
        "time": f"{seconds(document['elapsed_time'])}, {rate}",
        "peak memory": f"{document['peak_memory_mb']:,.0f} MB",
    }
    return "\n".join(
        [
            clean(document["model_name"]),
            "",
            output.facts(facts),
            "",
            table(["layers", ">parameters", ">mean", ">std", ">min", ">max", ">zeros"], rows),
        ]
    )
