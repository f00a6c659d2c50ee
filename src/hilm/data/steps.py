"""The closed list of what a configuration may do to rows: no code comes out of a file.

==========================  ==================================================================
map                         does
==========================  ==================================================================
lower, strip                to all columns of text, or to those listed: ``lower: [text]``
rename: {old: new}          renames columns
keep: [..], drop: [..]      chooses columns
template: "Q: {question}"   writes column ``text``; a mapping writes the columns it names
==========================  ==================================================================

==============================  ==============================================================
filter                          keeps rows
==============================  ==============================================================
min_chars: N, max_chars: N      whose ``text`` is so long; ``{column: N}`` for other columns
not_empty                       with something in every column, or in those listed
regex: {column, pattern}        whose column the pattern is found in
dedupe: [columns]               that are the first with these values; no list: with all. Not of a stream
sample: {n, seed}               n drawn at random; of a stream, out of 1,000 at a time
==============================  ==============================================================
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from hilm.data.rows import columns_of, digest
from hilm.errors import HilmError, InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_TEXT = {"string", "large_string", "str"}
Row = dict[str, Any]
Dataset = Any
Step = Any
"""A name, a mapping of one name to its argument, or from Python a function of a row."""


def apply(dataset: Dataset, maps: Sequence[Step], filters: Sequence[Step]) -> Dataset:
    """Apply map steps, then filter steps, in order.

    Raises:
        UsageError: A step is unknown or has the wrong argument.
        InputError: A step names a column that is not there.
    """
    for step in maps:
        dataset = dataset.map(step) if callable(step) else _run(_MAPS, "map", dataset, step)
    for step in filters:
        dataset = dataset.filter(step) if callable(step) else _run(_FILTERS, "filter", dataset, step)
    return dataset


def _run(table: Mapping[str, Callable[..., Any]], kind: str, dataset: Dataset, step: Step) -> Dataset:
    name, argument = next(iter(step.items())) if isinstance(step, dict) and len(step) == 1 else (step, None)
    if not isinstance(name, str) or name not in table:
        near = get_close_matches(str(name), table, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(table)}"
        raise UsageError(f"there is no {kind} step {name!r}", hint=hint)
    try:
        return table[name](dataset, argument)
    except HilmError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        raise UsageError(
            f"{kind} step {name}: cannot use {argument!r}", hint="see the table of hilm.data.steps"
        ) from error


def _columns(dataset: Dataset, wanted: Sequence[str] | str | None, *, text_only: bool = False) -> list[str]:
    """Return the columns listed, which must be there; without a list all, or all of text."""
    kinds = columns_of(dataset)
    if wanted is None:
        return [name for name, kind in kinds.items() if not text_only or kind in _TEXT]
    listed = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in listed:
        if name not in kinds:
            raise InputError(f"there is no column {name!r}", hint=f"there are {', '.join(kinds)}")
    return listed


def _each(change: Callable[[str], str]) -> Callable[..., Any]:
    def step(dataset: Dataset, wanted: list[str] | None) -> Dataset:
        columns = _columns(dataset, wanted, text_only=True)
        return dataset.map(
            lambda row: {name: None if row[name] is None else change(row[name]) for name in columns}
        )

    return step


def _rename(dataset: Dataset, names: dict[str, str]) -> Dataset:
    _columns(dataset, list(names))
    return dataset.rename_columns(names)


def _template(dataset: Dataset, template: str | dict[str, str]) -> Dataset:
    """Fill ``{column}``; nothing else of a format string is obeyed."""
    written = {"text": template} if isinstance(template, str) else dict(template)
    _columns(dataset, [name for text in written.values() for name in re.findall(r"\{(\w+)\}", text)])

    def fill(row: Row) -> Row:
        return {
            column: re.sub(r"\{(\w+)\}", lambda hit: _text(row[hit[1]]), text)
            for column, text in written.items()
        }

    return dataset.map(fill)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _length(fits: Callable[[int, int], bool]) -> Callable[..., Any]:
    def step(dataset: Dataset, limit: int | dict[str, int]) -> Dataset:
        limits = {name: int(n) for name, n in (limit if isinstance(limit, dict) else {"text": limit}).items()}
        _columns(dataset, list(limits))
        return dataset.filter(lambda row: all(fits(len(row[name] or ""), n) for name, n in limits.items()))

    return step


def _not_empty(dataset: Dataset, wanted: list[str] | None) -> Dataset:
    columns = _columns(dataset, wanted)
    return dataset.filter(lambda row: all(_holds(row[name]) for name in columns))


def _holds(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != []


def _regex(dataset: Dataset, wanted: dict[str, str]) -> Dataset:
    (column,), pattern = _columns(dataset, wanted["column"]), re.compile(wanted["pattern"])
    return dataset.filter(lambda row: pattern.search(_text(row[column])) is not None)


def _dedupe(dataset: Dataset, wanted: list[str] | None) -> Dataset:
    if not hasattr(dataset, "num_rows"):
        raise UsageError(
            "a stream cannot be deduplicated: it may be read several times", hint="streaming: false"
        )
    columns, seen = _columns(dataset, wanted), set[bytes]()

    def is_first(row: Row) -> bool:
        key = digest({name: row[name] for name in columns})
        return not (key in seen or seen.add(key))  # type: ignore[func-returns-value]

    return dataset.filter(is_first)


def _sample(dataset: Dataset, wanted: dict[str, int]) -> Dataset:
    shuffled = dataset.shuffle(seed=int(wanted.get("seed", 0)))
    rows = int(wanted["n"])
    return shuffled.take(min(rows, len(dataset)) if hasattr(dataset, "num_rows") else rows)


_MAPS: Mapping[str, Callable[..., Any]] = {
    "lower": _each(str.lower),
    "strip": _each(str.strip),
    "rename": _rename,
    "keep": lambda dataset, names: dataset.select_columns(_columns(dataset, names)),
    "drop": lambda dataset, names: dataset.remove_columns(_columns(dataset, names)),
    "template": _template,
}
_FILTERS: Mapping[str, Callable[..., Any]] = {
    "min_chars": _length(int.__ge__),
    "max_chars": _length(int.__le__),
    "not_empty": _not_empty,
    "regex": _regex,
    "dedupe": _dedupe,
    "sample": _sample,
}
