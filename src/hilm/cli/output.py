"""What people and programs read: one JSON document or text on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Document = Mapping[str, Any]

    class Progress(Protocol):
        """What shows how far a command is."""

        def __call__(self, done: int, total: int, label: str, detail: str = "") -> None:
            """Show so much of the total done, what is at work, and how it goes."""


ABSENT = "-"
ROWS = 20
"""Lines a long table shows before it is cut."""

_KEPT = "hilm.cli.output"


def keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 click's signature
    """Remember --json, --follow, --quiet or --no-progress for the functions of this module."""
    context.meta[f"{_KEPT}.{parameter.name}"] = value


def _asked(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(f"{_KEPT}.{name}"))


def emit(document: Document, render: Callable[[Document], str]) -> None:
    """Print a result on stdout: as one JSON document when --json was given, else as ``render`` writes it."""
    if _asked("follow"):
        follow(document)
    elif _asked("json"):
        click.echo(json.dumps(plain(document), indent=2, allow_nan=False))
    else:
        click.echo(render(document))


def follow(document: Document) -> None:
    """Print one line of JSON on stdout if --follow was given."""
    if _asked("follow"):
        click.echo(json.dumps(plain(document), allow_nan=False))


def plain(value: object) -> object:
    """Return ``value`` as JSON can hold it: infinities and NaN become null, tuples lists, paths strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def note(text: str, *, label: str = "note", color: str = "cyan") -> None:
    """Write one line for people on stderr, unless --quiet was given."""
    if not _asked("quiet"):
        click.echo(f"{paint(label + ':', fg=color)} {clean(text)}", err=True)


def report(message: str, hint: str) -> None:
    """Write an error and what to do about it, two lines on stderr."""
    click.echo(f"{paint('error:', fg='red', bold=True)} {clean(message)}", err=True)
    click.echo(f"{paint('hint:', fg='cyan')} {clean(hint or 'hilm --help shows what there is')}", err=True)


def settle(document: Document, *successes: str) -> None:
    """Decide what the models that failed mean for the whole command.

    Some worked: a warning each, and the command goes on to print the document. None worked: their errors,
    and the command ends with the first one's exit code and an empty stdout.

    Args:
        document: Has ``failed``: entries with ``model``, ``message``, ``hint`` and ``exit_code``.
        successes: Keys of the document that list what worked.
    """
    failed = document["failed"]
    worked = any(document[key] for key in successes)
    for entry in failed:
        text = f"{entry['model']}: {entry['message']}"
        if worked:
            note(text, label="warning", color="yellow")
        else:
            report(text, entry["hint"])
    if failed and not worked:
        click.get_current_context().exit(failed[0]["exit_code"])


def is_watched() -> bool:
    """Whether somebody sees, and wants, progress on stderr."""
    return sys.stderr.isatty() and not _asked("quiet") and not _asked("no_progress")


@contextmanager
def progress() -> Iterator[Progress]:
    """Give a progress callback that draws a bar on stderr, or does nothing where nobody watches."""
    if not is_watched():
        yield lambda *_: None
        return
    from tqdm import tqdm  # noqa: PLC0415 only a watched command pays for it

    form = "{desc} {percentage:3.0f} % |{bar}| {elapsed}, {remaining} to go{postfix}"
    with tqdm(
        bar_format=form, delay=0.2, miniters=1, leave=False, dynamic_ncols=True, file=sys.stderr
    ) as bar:

        def advance(done: int, total: int, label: str, detail: str = "") -> None:
            bar.set_description_str(elide(clean(label), 32), refresh=False)
            if done < bar.n:  # the next model begins
                bar.reset(total)
            bar.total = total
            bar.set_postfix_str(detail, refresh=False)
            bar.update(done - bar.n)

        yield advance


def paint(text: str, **style: Any) -> str:  # noqa: ANN401 passed on to click.style
    """Colour ``text``; click takes the colours out again where the stream is no terminal."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def clean(text: str) -> str:
    """Replace control characters: names come from files, and a terminal obeys what it is sent."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def elide(text: str, width: int = 56) -> str:
    """Cut the middle out of a text longer than ``width``: both ends of a tensor's name tell it apart."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def count(number: float | None) -> str:
    """Write a number of things: ``30,522``, ``22.7 M``, ``1.1 B``."""
    if number is None:
        return ABSENT
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:,.0f}"


def size(number: float | None) -> str:
    """Write a number of bytes: ``512 B``, ``86.7 MiB``."""
    if number is None:
        return ABSENT
    for power, unit in ((5, "PiB"), (4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if number >= 1024**power:
            return f"{number / 1024**power:.1f} {unit}"
    return f"{number:.0f} B"


def seconds(number: float | None) -> str:
    """Write a duration: ``0.42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if number is None:
        return ABSENT
    if number < 60:
        return f"{number:.2f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def figure(number: float | None) -> str:
    """Write a measured figure with four digits; nothing measured is a dash."""
    if number is None or not math.isfinite(number):
        return ABSENT
    return f"{number:.4g}"


def chance(number: float | None) -> str:
    """Write a p-value; one that underflowed is a bound, not zero."""
    return "< 1e-300" if number is not None and number < 1e-300 else figure(number)


def share(part: float, whole: float) -> str:
    """Write a part as per cent of the whole."""
    return f"{100 * part / whole:.1f} %" if whole else ABSENT


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows under their columns; a column whose title begins with ``>`` is flush right."""
    titles = [column.lstrip(">") for column in columns]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([paint(line(titles), bold=True), *map(line, rows)])


def facts(pairs: Mapping[str, str]) -> str:
    """Write names and values, one pair a line."""
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{paint(name.ljust(width), bold=True)}  {value}" for name, value in pairs.items())


def more(total: int, shown: int, how: str) -> list[str]:
    """Return the line that admits to a cut table, or nothing."""
    return [f"… and {total - shown:,} more ({how})"] if total > shown else []
