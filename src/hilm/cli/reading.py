"""``hilm inspect`` and ``hilm stream``: what a checkpoint holds."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import ROWS, clean, count, elide, figure, seconds, share, size, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hilm import StreamingProgress
    from hilm.cli.output import Document, Progress


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
    notes = [f"note: {clean(note)}" for note in document["notes"][: None if everything else ROWS]]
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
            *(["", *notes] if notes else ()),
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
        "hilm stream ./llama --follow | jq --unbuffered .progress_percent",
        "hilm stream ./gpt2 --per-layer --json | jq '.per_layer[] | select(.outliers > 0).name'",
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
@click.option("--per-layer", is_flag=True, help="Show every tensor's statistics too.")
@click.option("--no-adaptive", is_flag=True, help="Keep the chunk size as given, whatever the memory.")
@click.option(
    "--follow",
    is_flag=True,
    expose_value=False,
    callback=output.keep,
    help="Like --json, after lines of JSON that say how far it is, ten a second at most; one line each.",
)
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
    per_layer: bool,
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
            per_layer=per_layer,
            progress=Live(progress),
        )
    for text in document["notes"]:
        output.note(text)
    output.emit(document, streamed)


class Live:
    """Shows where a stream is, ten times a second at most: on a terminal, and on stdout with --follow."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._shown = progress, -math.inf

    def __call__(self, state: StreamingProgress) -> None:
        """Show the state, unless another was shown less than 100 ms ago."""
        now = time.monotonic()
        if now - self._shown < 0.1:
            return
        self._shown = now
        detail = f"{count(state.processing_rate)}/s, {state.memory_usage_mb:,.0f} MB"
        self._progress(state.processed_parameters, state.total_parameters, state.current_layer, detail)
        output.follow(state.figures() | {"eta_seconds": state.eta_seconds})


def streamed(document: Document) -> str:
    """Write what was read and how fast, then the statistics of each layer type."""
    read, total = count(document["processed_parameters"]), count(document["total_parameters"])
    rate = f"{count(document['processing_rate'])} parameters a second"
    tensors = document.get("per_layer", ())
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
            measured("layers", document["layers"].items()),
            *(["", measured("tensor", ((elide(clean(t["name"])), t) for t in tensors))] if tensors else []),
        ]
    )


def measured(title: str, measurements: Iterable[tuple[str, Document]]) -> str:
    """Write one line of statistics a layer type or tensor."""
    rows = [
        [
            label,
            count(figures["parameters"]),
            *(figure(figures[key]) for key in ("mean", "std", "min", "max")),
            share(figures["zeros"], figures["parameters"]),
            count(figures["outliers"]),
        ]
        for label, figures in measurements
    ]
    return table([title, ">parameters", ">mean", ">std", ">min", ">max", ">zeros", ">outliers"], rows)
