"""``hilm plan``: what a model, or the whole Hub, will take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import ABSENT, clean, count, figure, size, table
from hilm.errors import UsageError

if TYPE_CHECKING:
    from hilm.cli.output import Document

POSITIVE = click.IntRange(min=1)


@click.command(
    cls=options.Command,
    examples=(
        "hilm plan ./llama-7b --batch 4 --seq 2048 --grad-ckpt",
        "hilm plan ./llama-7b --rank 64 --targets attention --json | jq '.training[] | {method, total}'",
        "hilm plan --models 2200000 --workers 64",
    ),
)
@click.argument("model", required=False)
@click.option(
    "--batch", type=POSITIVE, default=1, show_default=True, metavar="N", help="Sequences of a step."
)
@click.option("--seq", type=POSITIVE, default=1024, show_default=True, metavar="N", help="Tokens of each.")
@click.option("--rank", type=POSITIVE, default=16, show_default=True, metavar="R", help="Rank of LoRA.")
@click.option(
    "--targets", cls=options.LayerTypes, metavar="TYPE…", help="What LoRA adapts. [default: attention mlp]"
)
@click.option("--grad-ckpt", is_flag=True, help="Compute activations again instead of keeping them.")
@click.option("--models", type=POSITIVE, metavar="N", help="Instead: what reading N models of the Hub takes.")
@click.option(
    "--workers", type=POSITIVE, default=64, show_default=True, metavar="W", help="Machines for that."
)
@options.revision
@options.switches
def plan(
    model: str | None,
    *,
    batch: int,
    seq: int,
    rank: int,
    targets: tuple[str, ...],
    grad_ckpt: bool,
    models: int | None,
    workers: int,
    revision: str | None,
) -> None:
    """Say what memory it takes to train and to serve a model, from its headers alone."""
    if (model is None) == (models is None):
        raise UsageError("a plan is for a MODEL or for --models N of the Hub", hint="hilm plan --help")
    if models is not None:
        output.emit(hilm.plan_hub(models, workers=workers), priced)
        return
    document = hilm.plan(
        options.at_revision(str(model), revision),
        batch=batch,
        sequence=seq,
        rank=rank,
        targets=targets or ("attention", "mlp"),
        checkpointing=grad_ckpt,
    )
    output.emit(document, planned)


def planned(document: Document) -> str:
    """Write what training and serving take; estimates have a ~ in their title."""
    assumed = document["assumptions"]
    again = ", activations computed again" if assumed["checkpointing"] else ""
    facts = {
        "parameters": f"{count(document['parameters'])}, {size(document['stored_bytes'])} as stored",
        "roles": ", ".join(f"{role} {count(n)}" for role, n in sorted(document["roles"].items())),
        "a step": f"{assumed['batch']} x {assumed['sequence']:,} tokens{again}",
        "LoRA": f"rank {assumed['rank']} in {', '.join(assumed['targets'])}",
    }
    fields = ("weights", "gradients", "optimizer", "activations", "total", "safe")
    titles = [
        "training",
        ">trainable",
        ">weights",
        ">gradients",
        ">AdamW",
        ">~activations",
        ">~total",
        ">~with 20 % spare",
    ]
    training = [
        [row["method"], count(row["trainable"]), *(size(row[field]) for field in fields)]
        for row in document["training"]
    ]
    serving = [[row["precision"], size(row["weights"]), size(row["kv_cache"])] for row in document["serving"]]
    return "\n".join(
        [
            clean(document["model"]),
            "",
            output.facts(facts),
            "",
            table(titles, training),
            "",
            table(["serving", ">weights", ">KV cache of 1,000 tokens"], serving),
            "",
            "~ is an estimate; all else follows exactly from the headers and config.json.",
            *document["notes"],
        ]
    )


def priced(document: Document) -> str:
    """Write what reading the Hub takes, tier by tier."""
    rows = [
        [
            tier["tier"],
            size(tier["bytes"]),
            count(tier["api_calls"] + tier["resolver_calls"]),
            count(tier["range_requests"]),
            " / ".join(figure(round(hours, 1)) for hours in tier["quota_hours"].values()),
            count(tier["worker_hours"]) if tier["worker_hours"] is not None else ABSENT,
            figure(tier["hours"]),
        ]
        for tier in document["tiers"]
    ]
    titles = [
        "read",
        ">bytes",
        ">Hub calls",
        ">ranges",
        ">quota hours (free / PRO / Ent. Plus)",
        ">worker hours",
        ">hours",
    ]
    workers = f"{document['workers']:,} workers"
    return "\n".join([f"{count(document['models'])} models, {workers}: an estimate", "", table(titles, rows)])
