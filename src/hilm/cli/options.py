"""What the commands share: their class, flags that take several values, and common options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from hilm.cli import output
from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Function = TypeVar("Function", bound=Callable[..., Any])

SWITCHES = {
    "--json": "Print one JSON document on stdout.",
    "--quiet": "Write no progress, notes or warnings.",
    "--no-progress": "Draw no progress bars.",
}
"""Flags of every command; also accepted before the command's name."""


class Several(click.Option):
    """A flag that takes every value up to the next flag, as in ``--models A B C``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 passed on to click.Option
        super().__init__(*args, **{**kwargs, "multiple": True})

    def takes(self, value: str) -> bool:
        """Say whether a further value still belongs to this flag."""
        return bool(value)


class LayerTypes(Several):
    """``--layers attention mlp``: a path ends the values, as in ``--layers attention ./model``."""

    def takes(self, value: str) -> bool:
        """Say whether a value can be a layer type, rightly spelled or not."""
        from hilm.weights.roles import LAYER_TYPES  # noqa: PLC0415 only a command with --layers pays for it

        return value in LAYER_TYPES or not ("/" in value or Path(value).exists())


class Command(click.Command):
    """A command whose help ends with examples, and whose flags may take several values.

    Args:
        examples: Complete command lines.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:  # noqa: ANN401 click's
        super().__init__(*args, **kwargs)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write a flag again before each further value of it, which is the form click reads."""
        several = {
            flag: option for option in self.params if isinstance(option, Several) for flag in option.opts
        }
        return super().parse_args(ctx, spread(args, several))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        del ctx
        write_examples(self.examples, formatter)


class Group(click.Group):
    """A command of commands, whose help ends with examples.

    Args:
        examples: Complete command lines.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:  # noqa: ANN401 click's
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        del ctx
        write_examples(self.examples, formatter)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write the last section of a command's help."""
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':{formatter.current_indent}}$ {example}\n")


def spread(args: Sequence[str], several: Mapping[str, Several]) -> list[str]:
    """Turn ``--layers attention mlp`` into ``--layers attention --layers mlp``.

    Args:
        args: The words after the command's name.
        several: Flags, spelled with dashes, that take more than one value.
    """
    written: list[str] = []
    flag, values = "", 0
    for position, word in enumerate(args):
        if word == "--":
            return written + list(args[position:])
        if word.startswith("-"):
            flag, values = word.replace("_", "-"), 0
        elif flag in several and values and several[flag].takes(word):
            written.append(flag)
        elif values:
            flag = ""
        values += not word.startswith("-")
        written.append(word)
    return written


def switches(function: Function) -> Function:
    """Add --json, --quiet and --no-progress, which :mod:`hilm.cli.output` obeys."""
    for flag, text in reversed(SWITCHES.items()):
        short = ("-q",) if flag == "--quiet" else ()
        click.option(
            flag, *short, is_flag=True, expose_value=False, is_eager=True, callback=output.keep, help=text
        )(function)
    return function


def storage_dir(function: Function) -> Function:
    """Add --storage-dir; without it the store is $HILM_HOME or ~/.cache/hilm."""
    return click.option(
        "--storage-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The store. [default: $HILM_HOME, else ~/.cache/hilm]",
    )(function)


def selection(function: Function) -> Function:
    """Add --layers, --exclude-layers, --chunk-size and --max-params."""
    layers = "embedding, attention, mlp, normalization, output or other."
    for option in (
        click.option(
            "--max-params", type=click.IntRange(min=1), metavar="N", help="Take at most N parameters."
        ),
        click.option("--chunk-size", type=click.IntRange(min=1), metavar="N", help="Parameters per chunk."),
        click.option(
            "--exclude-layers", cls=LayerTypes, metavar="TYPE…", help="Leave these layer types out."
        ),
        click.option("--layers", cls=LayerTypes, metavar="TYPE…", help=f"Only these layer types: {layers}"),
    ):
        option(function)
    return function


def base(text: str) -> Callable[[Function], Function]:
    """Add --base."""
    return click.option("--base", metavar="MODEL", help=text)


def rounding(function: Function) -> Function:
    """Add what mode small asks for: --bits, --error, --like, --quantiser, --effort and --keep."""
    formats = click.Choice(["q4_k", "q5_k", "q6_k", "q8_0", "nf4", "int4"])
    for option in (
        click.option("--keep", multiple=True, metavar="PATTERN", help="Round no tensors of such names."),
        click.option("--effort", type=click.IntRange(1, 2), help="1 rounds faster. [default: 2]"),
        click.option(
            "--quantiser", type=click.Choice(["tcq", "ecsq"]), help="ecsq is faster. [default: tcq]"
        ),
        click.option("--like", type=formats, help="As far as this format rounds. [default: q4_k]"),
        click.option("--error", type=float, metavar="NMSE", help="Mean squared error, normalised, instead."),
        click.option("--bits", type=float, metavar="B", help="Bits per rounded weight, 1.5 to 8."),
    ):
        option(function)
    return function


def carriers(function: Function) -> Function:
    """Add --carrier and --layout."""
    for option in (
        click.option(
            "--layout",
            type=click.Choice(["auto", "raster", "flat", "hilbert"]),
            default="auto",
            help="How weights lie in frames. [default: auto, what measures least]",
        ),
        click.option(
            "--carrier",
            type=click.Choice(["packed", "ffv1", "utvideo", "vp9"]),
            default="packed",
            help="What coded weights ride in; a lossless video costs more bits. [default: packed]",
        ),
    ):
        option(function)
    return function


def revision(function: Function) -> Function:
    """Add --revision; and --variant and --weights-file, which :func:`at_revision` obeys."""
    for flag, metavar, text in (
        ("--weights-file", "NAME", "The file meant, where a folder holds several."),
        ("--variant", "NAME", "Take the files called so, as model.fp16.safetensors is for fp16."),
    ):
        click.option(flag, metavar=metavar, expose_value=False, callback=_keep, help=text)(function)
    return click.option(
        "--revision", metavar="REV", help="Branch, tag or commit, for models on the Hub. [default: main]"
    )(function)


def _keep(context: click.Context, option: click.Parameter, value: str | None) -> None:
    context.meta[f"{__name__}.{option.name}"] = value


def at_revision(model: str, revision: str | None) -> str:
    """Write a model's address with the revision, file and variant asked for.

    Raises:
        UsageError: A revision is asked for, and the model is not just a Hub id.
    """
    from hilm.weights.folder import address_file, is_hub_id  # noqa: PLC0415 only these commands pay for it

    kept = click.get_current_context().meta
    file, variant = (kept.get(f"{__name__}.{name}") for name in ("weights_file", "variant"))
    if revision is not None:
        if not is_hub_id(model) or Path(model).exists():
            raise UsageError(f"{model} is not a Hub id: it has no revisions", hint="hf://organisation/name")
        model = f"hf://{model}@{quote(revision, safe='')}"
    model = address_file(model, file) if file else model
    return f"{model}#{variant}" if variant else model


def jobs(function: Function) -> Function:
    """Add --jobs and --ray."""
    for flag, kind, metavar, text in (
        ("--ray", str, "ADDRESS", "Work on a Ray cluster: host:port, or local to start one here."),
        ("--jobs", click.IntRange(min=1), "N", "Models at a time. [default: as cores allow]"),
    ):
        click.option(flag, type=kind, metavar=metavar, help=text)(function)
    return function
