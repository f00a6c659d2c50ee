"""``hilm pull``, ``push``, ``login``, ``logout`` and ``whoami``: to and from the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hilm.cli import options, output
from hilm.cli.output import clean, count, facts, size, table
from hilm.errors import UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hilm.cli.output import Document


def token_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --token; ``-`` reads it from stdin."""
    text = "A token; - reads it from stdin. HF_TOKEN is safer: other programs can see a command line."
    return click.option("--token", metavar="TOKEN", callback=read_token, help=text)(function)


def read_token(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Take a token from stdin, or warn about one on the command line."""
    if value == "-":
        given = sys.stdin.readline().strip()
        if not given:
            raise UsageError("there is no token on stdin", hint="hilm login --token - < FILE")
        return given
    if value:
        output.note(
            "the shell's history and the list of processes show --token", label="warning", color="yellow"
        )
    return value


def calm() -> None:
    """Let the Hub's client draw its bars only where somebody watches."""
    if not output.is_watched():
        require("huggingface_hub.utils").disable_progress_bars()


@click.command(
    cls=options.Command,
    examples=(
        "hilm pull google-bert/bert-base-uncased",
        "hilm pull google-bert/bert-base-uncased --include '*.json' --local-dir ./bert-settings",
    ),
)
@click.argument("repo")
@click.option("--revision", metavar="R", help="Branch, tag or commit. [default: main]")
@click.option("--include", cls=options.Several, metavar="PATTERN…", help="Only files of such names.")
@click.option("--exclude", cls=options.Several, metavar="PATTERN…", help="No files of such names.")
@click.option("--local-dir", type=click.Path(path_type=Path, file_okay=False), help="Put the files here.")
@click.option("--offline", is_flag=True, default=None, help="Take what the local cache has.")
@token_option
@options.switches
def pull(repo: str, **asked: Any) -> None:  # noqa: ANN401 - of the options
    """Download a repository at one commit and check every byte; interrupted, it goes on where it was.

    Without --include, pickles are left out where there are safetensors. Exit code 3: a file is damaged.
    """
    calm()
    output.emit(require("hilm.ship").pull(repo, **asked), pulled)


def pulled(document: Document) -> str:
    """Write what was fetched, from which commit, and where it is."""
    return facts(
        {
            "repository": f"{clean(document['repo'])} at {document['commit'][:12]}",
            "files": f"{len(document['files']):,}, {size(document['bytes'])}, digests checked",
            "path": clean(document["path"]),
        }
    )


@click.command(
    cls=options.Command,
    examples=(
        "hilm push ./my-model me/my-model",
        "hilm push ./my-model me/my-model --dry-run",
        "hilm push --model_path checkpoints/resnet_bk_1b.pt --repo_id me/resnet-bk-1b --model_size 1B",
        "hilm push --batch --checkpoint_dir checkpoints/ --repo_prefix me/resnet-bk",
    ),
)
@click.argument("source", required=False)
@click.argument("repo", required=False)
@click.option("--model-path", metavar="PATH", help="The same as the first argument.")
@click.option("--repo-id", metavar="REPO", help="The same as the second.")
@click.option(
    "--model-size", type=click.Choice(["1M", "10M", "100M", "1B", "10B"]), help="Of a ResNet-BK in a .pt."
)
@click.option("--also", cls=options.Several, metavar="FILE…", help="Publish these beside it: reels, graphs.")
@click.option("--batch", is_flag=True, help="Every model of --checkpoint-dir, as PREFIX-name.")
@click.option("--checkpoint-dir", metavar="DIR", help="Model folders and weight files.")
@click.option("--repo-prefix", metavar="PREFIX", help="owner/name, before the dash.")
@click.option("--private/--public", default=None, help="Of new repositories. [default: private]")
@click.option("--revision", metavar="BRANCH", help="[default: main]")
@click.option("--message", default="Upload with hilm", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="List files, sizes and the card; send nothing.")
@click.option("--no-card-check", is_flag=True, help="Check for secrets only; not for public repositories.")
@click.option("--force", is_flag=True, help="Publish in spite of a card with errors.")
@token_option
@options.switches
@click.pass_context
def push(
    context: click.Context,
    /,
    *,
    source: str | None,
    repo: str | None,
    model_path: str | None,
    repo_id: str | None,
    batch: bool,
    checkpoint_dir: str | None,
    repo_prefix: str | None,
    dry_run: bool,
    no_card_check: bool,
    **asked: Any,  # noqa: ANN401 - passed on
) -> None:
    """Publish a model folder, weight file, reel or graph: what differs, in one commit, read back.

    Where there is no README.md, a card is written from what the files show. A card with errors is refused.
    """
    calm()
    ship = require("hilm.ship")
    source, repo = source or model_path or checkpoint_dir, repo or repo_id or repo_prefix
    if source is None or repo is None:
        raise UsageError("push what, and where to?", hint="hilm push ./my-model me/my-model")
    asked["check_card"] = not no_card_check
    if dry_run:
        asked = {key: asked[key] for key in ("model_size", "also", "revision", "token", "check_card")}
    if batch:
        document = ship.push_batch(source, repo, dry_run=dry_run, **asked)
        output.settle(document, "pushed")
        output.emit(document, lambda told: "\n\n".join(map(pushed, told["pushed"])))
        context.exit(max((entry["exit_code"] for entry in document["failed"]), default=0))
    plan = ship.plan_push(source, repo, **asked).describe() if dry_run else ship.push(source, repo, **asked)
    output.emit(plan, pushed)


def pushed(document: Document) -> str:
    """Write what was sent, or would be; of a plan also the card."""
    lines = [
        table(
            ["file", "state", ">size"],
            [[clean(f["name"]), f["state"], size(f["size"])] for f in document["files"]],
        )
    ]
    lines += [f"left out: {', '.join(map(clean, document['left_out']))}"] if document["left_out"] else []
    lines += [found(finding) for finding in document["findings"]]
    if "url" not in document:
        return "\n".join(
            [
                *lines,
                f"to send: {size(document['bytes'])}; nothing was sent",
                "",
                clean_text(document["card"]),
            ]
        )
    sent = (
        f"{count(document['pushed'])} files, {size(document['bytes'])}"
        if document["pushed"]
        else "nothing to do"
    )
    return "\n".join([*lines, f"{sent}: {clean(document['url'])} at {document['commit'][:12]}"])


def clean_text(text: str) -> str:
    """Replace control characters but line ends."""
    return "\n".join(map(clean, text.splitlines()))


def found(finding: Document) -> str:
    """Write one finding: place, rule, what was found and what to do."""
    color = "red" if finding["level"] == "error" else "yellow"
    where = f"{finding['file']}:{finding['line']}" if finding["line"] else finding["file"] or "weights"
    level = output.paint(f"{finding['level']} {finding['rule']}", fg=color)
    return f"{clean(where)}: {level}: {clean(finding['message'])} ({finding['fix']})"


@click.command(cls=options.Command, examples=("hilm login", "hilm login --json"))
@token_option
@options.switches
def login(*, token: str | None) -> None:
    """Check a token for the Hub and keep it where the Hub's own client looks for it."""
    given = token or click.prompt(
        "Token, from https://huggingface.co/settings/tokens", hide_input=True, err=True
    )
    output.emit(require("hilm.ship.hub").login(given), described)


@click.command(cls=options.Command, examples=("hilm whoami", "hilm whoami --json"))
@token_option
@options.switches
def whoami(*, token: str | None) -> None:
    """Whose token is in use, and what it may do."""
    output.emit(require("hilm.ship.hub").whoami(token), described)


def described(document: Document) -> str:
    """Write a user."""
    return facts({key: clean(", ".join(v) if isinstance(v, list) else v) for key, v in document.items()})


@click.command(cls=options.Command, examples=("hilm logout", "hilm logout --json"))
@options.switches
def logout() -> None:
    """Forget the stored token; HF_TOKEN stays as it is."""
    forgotten = require("hilm.ship.hub").logout()
    output.emit({"forgotten": forgotten}, lambda d: "forgotten" if d["forgotten"] else "there was none")
