"""``hilm run``: one of eight tasks on texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from hilm.cli import options, output
from hilm.errors import InputError, UsageError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hilm.inference.runner import Input

TASKS = (
    "sentiment-analysis, ner, question-answering, summarization, translation_XX_to_YY, text-generation, "
    "zero-shot-classification or fill-mask"
)


@click.command(
    cls=options.Command,
    examples=(
        'hilm run sentiment-analysis --model ./classifier "I love this!"',
        'hilm run question-answering --model ./squad "Who?" --context "Anna did it." --json',
        'hilm run zero-shot-classification --model ./nli "The match was close." --labels sport politics',
        "hilm run summarization --model ./t5 --file articles.txt --batch-size 8 --option max_new_tokens=60",
    ),
)
@click.argument("task")
@click.argument("inputs", metavar="[INPUT]… | -", nargs=-1)
@click.option("--model", metavar="MODEL", help="Folder or Hub id. [default: a common one for the task]")
@click.option("--text", metavar="TEXT", help="The input, if it begins with a dash.")
@click.option(
    "--file", type=click.Path(path_type=Path), metavar="FILE", help="One input a line; .jsonl: one document."
)
@click.option("--context", metavar="TEXT", help="What question-answering answers from.")
@click.option("--labels", cls=options.Several, metavar="LABEL…", help="Of zero-shot-classification.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Inputs at once.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--dtype", default="auto", show_default=True, help="float32, float16 or bfloat16.")
@click.option("--option", "settings", multiple=True, metavar="KEY=VALUE", help="Of the task: top_k=3.")
@click.option("--allow-random-head", is_flag=True, help="Go on with a head that was never trained.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit, for models on the Hub.")
@options.switches
def run(
    task: str,
    inputs: tuple[str, ...],
    *,
    text: str | None,
    file: Path | None,
    context: str | None,
    labels: tuple[str, ...],
    settings: tuple[str, ...],
    **chosen: Any,  # noqa: ANN401 - flags of hilm.inference.create
) -> None:
    """Do TASK on texts with a model that has the head for it."""
    from hilm.inference.loading import find_model  # noqa: PLC0415 only a run pays for it
    from hilm.inference.tasks import find_task  # noqa: PLC0415

    found = find_task(task)
    given, is_one = _collect(inputs, text, file)
    wanted = _parse(settings) | ({"labels": list(labels)} if labels else {})
    ready = [_structure(item, context) for item in given]
    logging = require("transformers.utils.logging")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    chosen["model"], chosen["revision"], notes = find_model(found, chosen["model"], chosen["revision"])
    for note in notes:
        output.note(note)  # before a download begins
    runner = require("hilm.inference.runner").create(task, **chosen)
    for note in runner.notes:
        output.note(note)
    output.emit(runner(ready[0] if is_one else ready, **wanted), rendered)


def _collect(inputs: tuple[str, ...], text: str | None, file: Path | None) -> tuple[list[Input], bool]:
    """Return the inputs, and whether there is just one, not a list of one.

    Raises:
        UsageError: There are none, or they come from several places.
        InputError: The file cannot be read.
    """
    if bool(inputs) + (text is not None) + (file is not None) != 1:
        raise UsageError("give inputs, --text, --file or - for standard input", hint="hilm run --help")
    if text is not None or (inputs and inputs != ("-",)):
        words = list(inputs) if text is None else [text]
        return words, len(words) == 1
    try:
        content = file.read_text(encoding="utf-8") if file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file or 'standard input'}: {error}", hint="give a file of UTF-8 text") from error
    lines = content.splitlines()
    if file is None or file.suffix != ".jsonl":
        return lines, False
    try:
        return [json.loads(line) for line in lines], False
    except ValueError as error:
        raise InputError(f"{file}: {error}", hint="one JSON document a line") from error


def _structure(item: Input, context: str | None) -> Input:
    """Make a question of a text and its context."""
    return item if context is None else {"question": item, "context": context}


def _parse(settings: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs, the values as YAML has them."""
    pairs = [setting.partition("=") for setting in settings]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise UsageError(f"--option {wrong[0]} has no value", hint="--option top_k=3")
    return {name.replace("-", "_"): yaml.safe_load(value) for name, _, value in pairs}


def rendered(result: Any) -> str:  # noqa: ANN401 - JSON
    """Write results as a table; texts alone as texts."""
    rows = list(_rows(result))
    if not rows:
        return "nothing found"
    columns = list(rows[0])
    if len(columns) == 1:
        return "\n".join(_cell(row[columns[0]]) for row in rows)
    titles = [f">{name}" if isinstance(rows[0][name], float) else name for name in columns]
    return output.table(titles, [[_cell(row.get(name)) for name in columns] for row in rows])


def _rows(result: Any) -> Iterable[dict[str, Any]]:  # noqa: ANN401 - JSON
    if isinstance(result, dict):
        yield result
        return
    for item in result:
        yield from _rows(item)


def _cell(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, float):
        return output.figure(value)
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return " ".join(map(output.clean, str(value).splitlines()))
