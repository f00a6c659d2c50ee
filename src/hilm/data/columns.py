"""Which columns each way of training needs."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from hilm.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PROMPTS = (("prompt",),)
_PAIRS = (("chosen", "rejected"),)
COLUMNS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("text",), ("prompt", "completion"), ("messages",), ("source", "target")),
    "dpo": _PAIRS,
    "reward": _PAIRS,
    "kto": (("prompt", "completion", "label"),),
    "grpo": _PROMPTS,
    "rloo": _PROMPTS,
    "ppo": _PROMPTS,
    "classify": (("text", "label"),),
    "pretrain": (("text",),),
}
"""Method → sets of columns, one of which must be there. A ``prompt`` beside a pair is used too."""

_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("content", "sentence", "review", "document", "body"),
    "prompt": ("question", "instruction", "query", "input"),
    "completion": ("answer", "response", "output", "target"),
    "messages": ("conversations", "conversation", "dialog", "chat"),
    "source": ("input", "document", "article", "en"),
    "target": ("output", "summary", "translation", "de"),
    "chosen": ("preferred", "accepted", "better", "win"),
    "rejected": ("dispreferred", "refused", "worse", "lose"),
    "label": ("labels", "class", "category", "target", "sentiment"),
}
"""Column → what it is often called elsewhere."""


def check_columns(method: str, columns: Iterable[str]) -> tuple[str, ...]:
    """Return the set of columns of ``COLUMNS[method]`` that is there.

    Args:
        method: sft, dpo, reward, kto, grpo, rloo, ppo, classify or pretrain.
        columns: Names found in the data.

    Raises:
        UsageError: There is no such method.
        InputError: No set is complete; the hint renames the nearest columns.
    """
    if method not in COLUMNS:
        raise UsageError(f"there is no method {method!r}", hint=f"one of {', '.join(COLUMNS)}")
    found = list(columns)
    for wanted in COLUMNS[method]:
        if set(wanted) <= set(found):
            return wanted
    choices = " or ".join(" + ".join(wanted) for wanted in COLUMNS[method])
    raise InputError(
        f"{method} needs the columns {choices}; found {', '.join(found) or 'none'}",
        hint=_hint_rename(COLUMNS[method], found),
    )


def _hint_rename(choices: Iterable[tuple[str, ...]], found: list[str]) -> str:
    """Write the renaming that completes the set nearest to what was found."""
    renames = [{name: near for name in wanted if (near := _nearest(name, found))} for wanted in choices]
    complete = [rename for rename, wanted in zip(renames, choices, strict=True) if len(rename) == len(wanted)]
    best = max(complete or renames, key=len)
    pairs = ", ".join(f"{name}: {near}" for name, near in best.items() if name != near)
    return f"columns: {{{pairs or f'{next(iter(choices))[0]}: my_column'}}}"


def _nearest(name: str, found: list[str]) -> str:
    lower = {column.lower(): column for column in found}
    known = next((lower[other] for other in (name, *_OTHER_NAMES[name]) if other in lower), "")
    return known or next(iter(get_close_matches(name, found, n=1, cutoff=0.7)), "")
