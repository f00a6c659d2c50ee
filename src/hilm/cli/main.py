"""The ``hilm`` command: a table of commands, imported when used, and the one place that reports errors."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from itertools import takewhile
from typing import TYPE_CHECKING

import click

from hilm import __version__
from hilm.cli import output
from hilm.cli.options import SWITCHES
from hilm.errors import HilmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Entry:
    """A command before it is imported: its section of the help, ``module:function`` and one line of help."""

    section: str
    target: str
    help: str


COMMANDS: Mapping[str, Entry] = {
    "demo": Entry("Look", "demo:demo", "See it all work on a real model, without the Hub."),
    "inspect": Entry("Look", "reading:inspect", "What a checkpoint holds, read from its headers alone."),
    "plan": Entry("Look", "planning:plan", "What memory training and serving a model take."),
    "stream": Entry("Look", "reading:stream", "Statistics of every weight, in constant memory."),
    "encode": Entry("Film", "filming:encode", "Film checkpoints as reels and remember them in the store."),
    "decode": Entry("Film", "filming:decode", "Write a reel's weights back as safetensors."),
    "get": Entry("Film", "filming:get", "One tensor of a reel or a few rows of it, also from a URL."),
    "verify": Entry("Film", "filming:verify", "Prove that a reel holds what was filmed."),
    "report": Entry("Film", "reporting:report", "What a reel costs and loses, beside other codecs."),
    "index": Entry(
        "Recognise", "searching:index", "Remember checkpoints by their fingerprints, without a reel."
    ),
    "search": Entry("Recognise", "searching:search", "Find a checkpoint's relatives by its weights."),
    "diff": Entry("Recognise", "searching:diff", "Compare two checkpoints and say how they are related."),
    "lineage": Entry("Recognise", "lineage:lineage", "Which model comes from which, as a tree."),
    "dedupe": Entry("Recognise", "lineage:dedupe", "What is there twice, and what differences would save."),
    "parity": Entry("Prove", "parity:parity", "Prove that two implementations of one model agree."),
    "features": Entry(
        "Prove", "features:features", "Hidden states of a padded and a packed model, compared."
    ),
    "list": Entry("Store", "library:list_models", "The models in the store."),
    "stats": Entry("Store", "library:stats", "What the store holds, in figures."),
    "show": Entry("Store", "library:show", "One model of the store; --sheet and --picture draw it."),
    "rm": Entry("Store", "library:remove", "Forget a model and delete its reel."),
    "serve": Entry("Store", "serving:serve", "Show the store in a browser."),
    "completion": Entry(
        "Store", "serving:completion", "Have the shell complete commands and names of models."
    ),
    "run": Entry("Use", "running:run", "Do a task on texts: sentiment, ner, answers, summaries, …"),
    "data": Entry("Use", "data:data", "Look at rows to train on: read, shaped, measured."),
    "guide": Entry("Use", "advising:guide", "Which library for what, answered for a model and this machine."),
    "doctor": Entry("Use", "advising:doctor", "What is installed here, and what does not fit together."),
    "fit": Entry("Make", "fitting:fit", "Train a model, with its lineage attached: hilm fit METHOD CONFIG."),
    "finish": Entry("Make", "fitting:finish", "The reports and the card of a run, once more."),
    "merge": Entry("Make", "fitting:merge", "Merge a LoRA into its base."),
    "model": Entry("Make", "models:model", "Make a fresh ResNet-BK language model: hilm model new OUT."),
    "export": Entry("Make", "exporting:export", "Export a model to ONNX or TensorRT, verified."),
    "bench": Entry("Make", "exporting:bench", "Time a model here: PyTorch against ONNX Runtime."),
    "pull": Entry("Hub", "hub:pull", "Download a repository, every byte checked."),
    "push": Entry("Hub", "hub:push", "Publish a model with a card that was checked."),
    "card": Entry("Hub", "cards:card", "Write, check and compare model cards."),
    "login": Entry("Hub", "hub:login", "Keep a token for the Hub."),
    "logout": Entry("Hub", "hub:logout", "Forget it."),
    "whoami": Entry("Hub", "hub:whoami", "Whose token is in use."),
}
"""Every command, in the order of the help."""

FORMER: Mapping[str, str] = {
    "--search-similar": "search",
    "--list-models": "list",
    "--statistics": "stats",
    "--models": "encode",
    "--model": "encode",
    "--download-popular": "encode",
}
"""Flags that once chose what to do → the command that does it; the command takes the flag as well."""


class CommandTable(click.Group):
    """A group answered from :data:`COMMANDS`; a command's module is imported when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(f"hilm.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one.

        Raises:
            UsageError: There is no such command.
        """
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise UsageError(f"there is no command {args[0]!r}", hint=nearest(args[0]))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands section by section, without importing any."""
        del ctx
        width = max(map(len, COMMANDS))
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [
                        (name.ljust(width), entry.help)
                        for name, entry in COMMANDS.items()
                        if entry.section == section
                    ]
                )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        del ctx
        with formatter.section("For example"):
            for line in EXAMPLE.strip().splitlines():
                formatter.write(f"  {line}".rstrip() + "\n")


EXAMPLE = """
$ hilm encode ./bert-base ./gpt2             two checkpoints become two films
$ hilm search ./found-on-a-disk              whose child is it, and how sure is that?
$ hilm diff ./bert-base ./found-on-a-disk    what changed, the most changed first
"""


def nearest(word: str) -> str:
    """Return the hint for a word that names no command."""
    from difflib import get_close_matches  # noqa: PLC0415 only a mistake pays for it

    matches = get_close_matches(word, COMMANDS, n=1)
    return f"did you mean 'hilm {matches[0]}'?" if matches else "hilm --help lists the commands"


@click.command(
    cls=CommandTable,
    invoke_without_command=True,
    subcommand_metavar="COMMAND …",
    options_metavar="",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),
        "max_content_width": 100,
    },
)
@click.version_option(__version__, message="hilm %(version)s", help="Print the version.")
@click.pass_context
def hilm(context: click.Context) -> None:
    """Read checkpoints in constant memory, film them as reels, recognise relatives by weights alone."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def modernise(arguments: Sequence[str]) -> list[str]:
    """Rewrite a command line of the former scripts, such as ``--list-models``, to the command it means.

    Switches every command has (``hilm --json list``) move behind the command's name.
    """
    front = list(takewhile(lambda word: word in SWITCHES or word == "-q", arguments))
    rest = list(arguments[len(front) :])
    flags = [word.partition("=")[0].replace("_", "-") for word in rest]
    if not rest or not rest[0].startswith("-"):
        return [*rest[:1], *front, *rest[1:]] or front
    command = next((FORMER[flag] for flag in flags if flag in FORMER), None)
    if command is None:
        return list(arguments)
    if not {"-q", "--quiet"} & {*front, *rest}:
        output.note(f"read as 'hilm {command} {' '.join(rest)}'; hilm {command} --help tells more")
    return [command, *front, *rest]


def describe(error: Exception) -> tuple[str, str, int]:
    """Return an error's message, hint and exit code."""
    match error:
        case HilmError():
            return error.message, error.hint, error.exit_code
        case click.Abort():
            return "interrupted", "run the same command again; what was finished is kept", 1
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "hilm"
            message = error.format_message().rstrip(".")
            return message[:1].lower() + message[1:], f"{command} --help shows what it takes", error.exit_code
        case OSError():
            reason = error.strerror or str(error)
            message = f"{error.filename}: {reason}" if error.filename else reason
            return message, "check the path, its permissions and the free space", 1
        case _:
            return (
                f"unexpected {type(error).__name__}: {error}",
                "this is a bug in hilm; HILM_DEBUG=1 shows where",
                1,
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: The words after ``hilm``; those of the process when None.

    Returns:
        The exit code: 0 ok, 1 runtime failure, 2 usage or bad input, 3 verification failed, 4 missing extra,
        5 network or Hub.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot spell a name is no failure
    try:
        words = modernise(sys.argv[1:] if arguments is None else arguments)
        code = hilm.main(words, prog_name="hilm", standalone_mode=False)
    except Exception as error:  # noqa: BLE001 the one place where an error becomes text and an exit code
        if os.environ.get("HILM_DEBUG") == "1":
            import traceback  # noqa: PLC0415 only wanted here

            traceback.print_exc()
        message, hint, code = describe(error)
        output.report(message, hint)
    return code if isinstance(code, int) else 0
