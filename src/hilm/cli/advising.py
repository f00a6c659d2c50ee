"""``hilm guide`` and ``hilm doctor``: which library for what, and what is installed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hilm.cli import options, output
from hilm.cli.output import ABSENT, clean, count, size, table
from hilm.extras import require

if TYPE_CHECKING:
    from pathlib import Path

    from hilm.cli.output import Document


@click.command(
    cls=options.Command, examples=("hilm guide", "hilm guide --goal finetune --model ./llama-7b --json")
)
@click.option("--goal", metavar="GOAL", help="download, data, infer, finetune, align or distribute.")
@click.option("--model", metavar="MODEL", help="Answer for this model and this machine.")
@options.switches
def guide(goal: str | None, model: str | None) -> None:
    """Answer "what do you want to do?" with the library for it, and a command that does it."""
    output.emit(require("hilm.inference.guide").guide(goal, model), advised)


def advised(document: Document) -> str:
    """Write the tree; for a model the ways to train it."""
    answers = [[a["question"], a["library"], clean(a["command"])] for a in document["answers"]]
    lines = [table(["what do you want to do?", "use", "for example"], answers)]
    if "ways" in document:
        machine = document["machine"]
        ways = [[w["method"], size(w["bytes"]), "yes" if w["fits"] else "no"] for w in document["ways"]]
        where = f"{machine['devices']} x {machine['device']}, {size(machine['memory'])} free"
        lines += [
            "",
            f"{clean(document['model'])}: {count(document['parameters'])} parameters; {where}",
            "",
            table(["way to train", ">~with 20 % spare", "fits"], ways),
            "",
            f"advice: {document['peft'] or 'none of these fits: a smaller model, or more memory'}",
            *document["rules"],
        ]
    return "\n".join(lines)


@click.command(cls=options.Command, examples=("hilm doctor", "hilm doctor --offline --json"))
@click.option("--offline", is_flag=True, help="Do not ask whether the Hub can be reached.")
@options.storage_dir
@options.switches
@click.pass_context
def doctor(context: click.Context, storage_dir: Path | None, *, offline: bool) -> None:
    """Say what is installed here, and what does not fit together; exit 3 if something does not."""
    folder = require("hilm.store.store").local_folder(storage_dir)
    document = require("hilm.inference.machine").examine(folder, offline=offline)
    output.emit(document, examined)
    context.exit(0 if document["ok"] else 3)


def examined(document: Document) -> str:
    """Write packages, machine and problems."""
    hub, machine = document["hub"], document["machine"]
    reach = {True: "reachable", False: "not reachable", None: "not asked"}[hub["reachable"]]
    marks = {True: "yes", False: "NO", None: ABSENT}
    packages = [
        [p["name"], p["version"] or "not installed", p["wanted"], p["extra"] or "base", marks[p["ok"]]]
        for p in document["packages"]
    ]
    facts = {
        "hilm": f"{document['hilm']}, Python {document['python']}, {document['platform']}",
        "machine": f"{machine['devices']} x {machine['device']}, {size(machine['memory'])} free, "
        f"{machine['cores']} cores",
        "Hub": f"{clean(hub['endpoint'])} {reach}, {'a' if hub['token'] else 'no'} token",
        "caches": ", ".join(f"{name} {size(n)}" for name, n in document["caches"].items()),
    }
    found = [f"problem: {clean(text)}" for text in document["problems"]] or ["no problems"]
    titles = ["package", "version", "wanted", "extra", "fits"]
    return "\n".join([output.facts(facts), "", table(titles, packages), "", *found])
