"""``hilm index``, ``hilm search`` and ``hilm diff``: who is related to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import ROWS, chance, clean, count, elide, figure, paint, table
from hilm.errors import UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from pathlib import Path

    from hilm.cli.output import Document


@click.command(
    cls=options.Command,
    examples=(
        "hilm index ./models/*",
        "hilm index ./models/* --ray 10.0.0.7:6379",
        "hilm index ./bert-base --storage-dir experiment_1 --json",
        "hilm index --organisation google-bert --budget 20",
    ),
)
@click.argument("models", nargs=-1, metavar="MODEL…")
@click.option("--organisation", metavar="ORG", help="Every model that ORG has on the Hub.")
@click.option(
    "--budget", type=click.FloatRange(min=0), metavar="GIB", help="Weights to read of them at most."
)
@click.option("--name", help="The model's name in the store. [default: the folder's]")
@click.option("--force", is_flag=True, help="Read again what is already in the store.")
@options.revision
@options.jobs
@options.storage_dir
@options.switches
def index(
    models: tuple[str, ...],
    *,
    organisation: str | None,
    budget: float | None,
    name: str | None,
    force: bool,
    revision: str | None,
    jobs: int | None,
    ray: str | None,
    storage_dir: Path | None,
) -> None:
    """Remember checkpoints by their fingerprints: a few kilobytes each, no reel.

    Models on the Hub are read by ranges: nothing is kept of them but the fingerprint.
    """
    if organisation:
        index_all(organisation, budget, jobs, storage_dir)
        return
    if not models:
        raise UsageError("no model to index", hint="hilm index ./bert-base, or --organisation ORG")
    with output.progress() as progress:
        pinned = [options.at_revision(model, revision) for model in models]
        document = hilm.Store(storage_dir).index(
            pinned, jobs=jobs, ray=ray, name=name, force=force, progress=progress
        )
    output.settle(document, "indexed", "skipped")
    output.emit(document, indexed)


def index_all(organisation: str, budget: float | None, jobs: int | None, storage_dir: Path | None) -> None:
    """Index what an organisation has on the Hub."""
    with output.progress() as progress:
        document = require("hilm.ship").index_organisation(
            organisation,
            store=hilm.Store(storage_dir),
            budget=None if budget is None else round(budget * 2**30),
            jobs=jobs,
            progress=progress,
        )
    output.settle(document, "indexed", "skipped", "left")
    if document["left"]:
        output.note(f"{len(document['left']):,} models are left for the next run: the budget is used up")
    output.emit(document, indexed)


def indexed(document: Document) -> str:
    """Write how many models are new, known and unusable, and which."""
    lines = [f"{len(document['indexed']):,} indexed, {len(document['skipped']):,} already known"]
    for state, key in (("new", "indexed"), ("known", "skipped")):
        lines += [f"  {state:<5}  {clean(named(entry))}" for entry in document[key]]
    return "\n".join(lines)


def named(entry: str | Document) -> str:
    """Return the model's name of an entry that is the name, or has it."""
    return entry if isinstance(entry, str) else str(entry["model"])


@click.command(
    cls=options.Command,
    examples=(
        "hilm search ./mystery-model",
        "hilm search ./mystery-model --search-method hybrid --top-k 3 --json",
        "hilm search bert-base --storage-dir experiment_1",
    ),
)
@click.argument("model", required=False)
@click.option("--search-similar", metavar="MODEL", hidden=True)
@click.option(
    "--search-method",
    "--method",
    "method",
    type=click.Choice(["features", "hierarchical", "hybrid"]),
    default="hybrid",
    show_default=True,
    help="What is compared: weights as they lie (hierarchical), token geometry (features), or both.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=10, show_default=True, metavar="K", help="Matches."
)
@options.revision
@options.storage_dir
@options.switches
def search(
    model: str | None,
    *,
    search_similar: str | None,
    method: str,
    top_k: int,
    revision: str | None,
    storage_dir: Path | None,
) -> None:
    """Find a checkpoint's relatives in the store by its weights alone, best first.

    MODEL is a folder, a file, the name of a model in the store, a Hub id or a URL.
    """
    query = model or search_similar
    if query is None:
        raise UsageError("no model to search for", hint="hilm search ./mystery-model")
    query = options.at_revision(query, revision)
    with output.progress() as progress:
        document = hilm.Store(storage_dir).search(query, method=method, top_k=top_k, progress=progress)
    output.emit(document, found)


def found(document: Document) -> str:
    """Write the matches, best first, each with the evidence for it."""
    matches = document["matches"]
    heading = f"{clean(document['query'])}, by {document['method']}"
    if not matches:
        nothing = "no relatives in this store; hilm list shows what it holds"
        return "\n".join([heading, "", nothing, *adapted(document)])
    told = [matches[0], *(match for match in matches if match["relation"] == "merge")]
    return "\n".join(
        [
            heading,
            "",
            table(
                [">#", "model", "relation", ">score", ">z", ">p"],
                [
                    [
                        str(rank),
                        clean(match["model"]),
                        match["relation"],
                        f"{match['score']:.4f}",
                        figure(match["z"]),
                        chance(match["p_value"]),
                    ]
                    for rank, match in enumerate(matches, 1)
                ],
            ),
            "",
            *(clean(text) for text in dict.fromkeys(match["sentence"] for match in told)),
            *assembled(document),
            *adapted(document),
        ]
    )


def assembled(document: Document) -> list[str]:
    """Write the nearest relative of each component, if there are several."""
    lines = []
    for part in document.get("components", ()):
        best = [f"{m['model']} ({m['relation']}, p {chance(m['p_value'])})" for m in part["matches"][:1]]
        lines.append(clean(f"component {part['component']}: {best[0] if best else 'no relative'}"))
    return lines


def adapted(document: Document) -> list[str]:
    """Write what an unmerged adapter fits, and which models differ by it."""
    if "adapter" not in document:
        return []
    names = [clean(name) for name in document["adapter"]["compatible"]]
    lines = [f"an unmerged adapter; by shape it fits {', '.join(names[:ROWS]) or 'no model of this store'}"]
    lines += [
        f"{clean(pair['model'])} differs from {clean(pair['base'])} by this adapter "
        f"(cosine {pair['cosine']:.2f}, p {chance(pair['p_value'])})"
        for pair in document["adapter"]["applied"][:ROWS]
    ]
    return lines


@click.command(
    cls=options.Command,
    examples=("hilm diff ./bert-base ./bert-finetuned", "hilm diff bert-base ./mystery-model --json"),
)
@click.argument("a")
@click.argument("b")
@click.option("--all", "everything", is_flag=True, help="List every tensor.")
@options.storage_dir
@options.switches
def diff(a: str, b: str, *, everything: bool, storage_dir: Path | None) -> None:
    """Compare two checkpoints tensor by tensor and say how they are related."""
    with output.progress() as progress:
        document = hilm.diff(a, b, store=hilm.Store(storage_dir), progress=progress)
    output.emit(document, lambda result: compared(result, everything=everything))


def compared(document: Document, *, everything: bool) -> str:
    """Write the verdict, then the tensors that changed most."""
    tensors = document["tensors"]
    changed = sorted(
        (tensor for tensor in tensors if not tensor["identical"]),
        key=lambda tensor: -(tensor["rel_l2"] or 0.0),
    )
    shown = changed if everything else changed[:ROWS]
    lines = [
        paint(document["sentence"], bold=True),
        f"{document['relation']}: score {figure(document['score'])}, p {chance(document['p_value'])}",
        f"{len(tensors) - len(changed):,} of {count(len(tensors))} tensors identical",
    ]
    if document["relation"] == "permuted":
        lines.append("tensors are compared as they lie, in bases that differ")
    if shown:
        rows = [
            [
                elide(clean(tensor["a"])),
                output.ABSENT if tensor["a"] == tensor["b"] else elide(clean(tensor["b"])),
                figure(tensor["cosine"]),
                figure(tensor["rel_l2"]),
            ]
            for tensor in shown
        ]
        lines += ["", table(["most changed", "named in B", ">cosine", ">relative change"], rows)]
    return "\n".join([*lines, *output.more(len(changed), len(shown), "--all lists them")])
