"""Flags of commands that read pictures and clips, and the reading they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from hilm.parity.inputs import Reading

    Function = TypeVar("Function", bound=Callable[..., Any])

FLAGS = (
    click.option("--num-frames", type=int, default=8, show_default=True, help="Frames sampled of each clip."),
    click.option(
        "--fit",
        type=click.Choice(["resize", "crop", "pad", "error"]),
        default="resize",
        show_default=True,
        help="What happens to sides that are no multiple of the patch.",
    ),
    click.option(
        "--frame-rounding", type=click.Choice(["round", "floor"]), default="round", help="Of frame numbers."
    ),
    click.option(
        "--sampling", type=click.Choice(["index", "time"]), default="index", help="Evenly by number or time."
    ),
    click.option(
        "--virtual-frames", type=int, default=64, show_default=True, help="Slots that frames spread over."
    ),
    click.option(
        "--exif", type=click.Choice(["apply", "ignore"]), default="apply", help="Orientation of pictures."
    ),
    click.option(
        "--rotation", type=click.Choice(["apply", "ignore"]), default="apply", help="Rotation of clips."
    ),
    click.option("--background", default="white", metavar="COLOUR", help="Behind transparent pixels."),
    click.option("--max-pixels", type=click.IntRange(min=1), default=178_956_970, help="Largest picture."),
    click.option("--allow-partial", is_flag=True, help="Use a clip that breaks midway up to there."),
)


REPORTS = (
    click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML here."),
    click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page here."),
)

MEMORY = click.option(
    "--memory-limit",
    type=click.FloatRange(min=1),
    metavar="MB",
    help="Refuse what is estimated to take more.  [default: 80 % of what is free]",
)


def reports(function: Function) -> Function:
    """Add the flags that name files for reports."""
    for option in reversed(REPORTS):
        option(function)
    return function


def write_report(path: Path | None, make: Callable[[Any], str], found: Any) -> None:  # noqa: ANN401 - a report
    """Write one of these files, if it was asked for."""
    if path is not None:
        from hilm.files import write_file  # noqa: PLC0415 only these commands pay for it

        write_file(path, make(found).encode())


def reading(function: Function) -> Function:
    """Add the flags that say how inputs become pixels."""
    for option in reversed(FLAGS):
        option(function)
    return function


def make_reading(options: dict[str, Any]) -> Reading:
    """Take these flags out of a command's options."""
    from dataclasses import fields  # noqa: PLC0415 only these commands pay for it

    from hilm.parity.inputs import Reading  # noqa: PLC0415

    return Reading(**{f.name: options.pop(f.name) for f in fields(Reading) if f.name in options})
