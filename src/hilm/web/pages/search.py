"""Relatives of a model, with the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilm.html import Markup, facts, join, table, tag, written
from hilm.quantities import chance, figure
from hilm.web.pages.common import badge, link, model_link

if TYPE_CHECKING:
    from collections.abc import Mapping


def show_relatives(found: Mapping[str, Any], *, known: bool) -> Markup:
    """One row a match, best first.

    Args:
        found: What ``Store.search`` returns.
        known: Whether the query is in the store, so that it can be compared.
    """
    query = found["query"]
    related = [m for m in found["matches"] if m["relation"] != "independent"]
    told = f"{len(related)} of {len(found['matches'])} are relatives" if related else "No relative was found"
    rows = [
        [
            model_link(match["model"]),
            badge(match["relation"]),
            chance(match["p_value"]),
            figure(match["z"]),
            figure(match["score"]),
            _evidence(match),
            link("/diff", "diff", a=match["model"], b=query) if known else "",
        ]
        for match in found["matches"]
    ]
    columns = ["model", "relation", ">p-value", ">z", ">score", "evidence", "next"]
    reading = "The p-value is the chance that an unrelated model of the store would look this similar."
    return join([tag("h2", f"Relatives of {query}"), tag("p", f"{told}. {reading}"), table(columns, rows)])


def _evidence(match: Mapping[str, Any]) -> Markup:
    details = {key.replace("_", " "): written(key, value) for key, value in match["details"].items()}
    return tag("details", tag("summary", match["sentence"]), facts(details))
