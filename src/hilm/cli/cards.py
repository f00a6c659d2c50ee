"""``hilm card build``, ``check`` and ``diff``: model cards that tell the truth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hilm.cli import options, output
from hilm.cli.hub import clean_text, found
from hilm.cli.output import clean, table
from hilm.errors import InputError
from hilm.extras import require
from hilm.files import write_file

if TYPE_CHECKING:
    from typing import Any

    from hilm.cli.output import Document


@click.group(
    cls=options.Group,
    examples=(
        "hilm card build ./my-model me/my-model --license apache-2.0",
        "hilm card check ./my-model",
        "hilm card diff ./old/README.md ./new/README.md",
    ),
)
def card() -> None:
    """Write, check and compare model cards; offline, and without torch."""


@card.command(cls=options.Command, examples=("hilm card build ./my-model me/my-model --license mit --write",))
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("repo_id", metavar="REPO")
@click.option("--license", metavar="ID", help="Such as apache-2.0.")
@click.option("--language", cls=options.Several, metavar="CODE…", help="Such as en.")
@click.option("--description", metavar="TEXT")
@click.option("--intended-use", metavar="TEXT")
@click.option("--limitations", metavar="TEXT")
@click.option("--write", is_flag=True, help="Write README.md in the folder; else it is only shown.")
@options.switches
def build(path: Path, repo_id: str, *, write: bool, **author: Any) -> None:  # noqa: ANN401 - fields of CardFacts
    """Write the card of a model folder or run for the repository REPO, from what its files show.

    What the README.md in the folder says of licence, base and data is kept. What is not known is left out.
    """
    text = require("hilm.ship").create_model_card(path, repo_id, **author)
    if write:
        write_file(path / "README.md", text.encode())
    document = {"repo": repo_id, "path": path / "README.md" if write else None, "card": text}
    output.emit(document, lambda told: clean_text(told["card"]))


@card.command(
    cls=options.Command,
    examples=("hilm card check ./my-model", "hilm card check ./my-model --lineage ./store --json"),
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--repo-id", metavar="REPO", default="", help="Repository the card is for.")
@click.option("--no-scan", is_flag=True, help="Do not read all weights, looking for NaN and infinity.")
@click.option("--allow-license", cls=options.Several, metavar="ID…", help="Further licence identifiers.")
@click.option(
    "--lineage",
    type=click.Path(path_type=Path),
    metavar="STORE",
    help="Compare base_model with the weights too.",
)
@options.switches
@click.pass_context
def check(
    context: click.Context,
    path: Path,
    *,
    repo_id: str,
    no_scan: bool,
    allow_license: tuple[str, ...],
    lineage: Path | None,
) -> None:
    """Check a card against itself, the files beside it and the weights, by rules C01 to C20.

    Exit code 3: there are errors; or, with --lineage, the weights contradict base_model.
    """
    ship = require("hilm.ship")
    findings = [asdict(f) for f in ship.check(path, repo_id, scan=not no_scan, licenses=allow_license)]
    document: dict[str, Any] = {
        "path": str(path),
        "ok": all(finding["level"] != "error" for finding in findings),
        "findings": findings,
    }
    if lineage is not None:
        document["lineage"] = ship.check_base(path, lineage)
        document["ok"] &= all(base["agrees"] is not False for base in document["lineage"])
    output.emit(document, checked)
    context.exit(0 if document["ok"] else 3)


def checked(document: Document) -> str:
    """Write the findings, what the weights say of each base, and the verdict."""
    lines = [found(finding) for finding in document["findings"]]
    for base in document.get("lineage", ()):
        verdict = {True: "agrees", False: "CONTRADICTED", None: "not known"}[base["agrees"]]
        lines.append(f"base_model {clean(base['base'])}: {verdict}: {clean(base['sentence'])}")
    ok = (
        output.paint("ok", fg="green", bold=True)
        if document["ok"]
        else output.paint("BAD", fg="red", bold=True)
    )
    return "\n".join([*lines, f"{ok}: {clean(document['path'])}"])


@card.command(cls=options.Command, examples=("hilm card diff ./a/README.md ./b/README.md",))
@click.argument("a", type=click.Path(path_type=Path, exists=True))
@click.argument("b", type=click.Path(path_type=Path, exists=True))
@options.switches
def diff(a: Path, b: Path) -> None:
    """Show the fields and sections in which two cards differ; folders mean their README.md."""
    changed = require("hilm.ship").diff(_text(a), _text(b))
    rows = [{"field": name, "a": first, "b": second} for name, (first, second) in changed.items()]
    output.emit({"a": a, "b": b, "changed": rows}, differences)


def _text(path: Path) -> str:
    try:
        return (path / "README.md" if path.is_dir() else path).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} is no card") from None


def differences(document: Document) -> str:
    """Write one line a change."""
    rows = [
        [row["field"], *(clean(output.elide(str(row[key]), 40)) for key in "ab")]
        for row in document["changed"]
    ]
    return table(["field", "a", "b"], rows) if rows else "no difference"
