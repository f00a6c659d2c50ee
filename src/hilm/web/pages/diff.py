"""Where two models differ, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilm.html import Markup, facts, join, table, tag, written
from hilm.quantities import chance, figure
from hilm.web.pages.common import badge, bar, model_link
from hilm.web.views import SHOWN

if TYPE_CHECKING:
    from collections.abc import Mapping


def show_difference(a: str, b: str, found: Mapping[str, Any]) -> Markup:
    """The verdict, then every pair of tensors in their order; a longer bar differs more."""
    pairs = found["tensors"]
    same = sum(pair["identical"] for pair in pairs)
    most = max((pair["rel_l2"] or 0.0 for pair in pairs), default=0.0)
    title = tag("h2", model_link(a), " and ", model_link(b))
    parts = [
        title,
        tag("p", badge(found["relation"]), f" p-value {chance(found['p_value'])}. ", found["sentence"]),
        tag(
            "p",
            f"{same:,} of {len(pairs):,} tensors are identical. Bars are relative to the most changed one.",
        ),
        table(["tensor", "how far apart", ">cosine"], [_row(pair, most) for pair in pairs[:SHOWN]]),
    ]
    if len(pairs) > SHOWN:
        parts.append(tag("p", f"{len(pairs) - SHOWN:,} more tensors: hilm diff A B --json lists all."))
    for side, name in (("only_a", a), ("only_b", b)):
        if found[side]:
            names = ", ".join(found[side][:SHOWN])
            parts.append(
                tag("details", tag("summary", f"{len(found[side]):,} only in {name}"), tag("p", names))
            )
    details = {key.replace("_", " "): written(key, value) for key, value in found["details"].items()}
    return join([*parts, tag("details", tag("summary", "All figures"), facts(details))])


def _row(pair: Mapping[str, Any], most: float) -> list[str]:
    name = pair["a"] if pair["a"] == pair["b"] else f"{pair['a']} / {pair['b']}"
    if pair["identical"]:
        return [name, "identical", "1"]
    far = pair["rel_l2"]
    drawn = bar(far / most if most else 0.0, figure(far)) if far is not None else "not comparable"
    return [name, drawn, figure(pair["cosine"])]
