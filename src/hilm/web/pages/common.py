"""What pages share."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from hilm.html import Markup, tag

if TYPE_CHECKING:
    from collections.abc import Sequence

KIN = {"independent": "far", "shares-ancestor": "near"}
"""Relation → class of its badge; all others are ``kin``."""


def link(page: str, text: str, **query: str) -> Markup:
    """Write a link to a page about something."""
    return tag("a", text, href=f"{page}?{urlencode(query)}")


def model_link(name: str) -> Markup:
    """Write a link to a model's page."""
    return link("/model", name, name=name)


def badge(relation: str) -> Markup:
    """Write a relation, in a colour that says how close it is; the word says it too."""
    return tag("span", relation, class_=f"badge {KIN.get(relation, 'kin')}")


def notice(message: str, hint: str = "") -> Markup:
    """Write what went wrong and what to do."""
    return tag(
        "div", tag("strong", message), *([tag("p", hint)] if hint else []), class_="notice", role="alert"
    )


def figures(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Write a row of large figures with their names."""
    return tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in pairs), class_="figures")


def bar(share: float, label: str) -> Markup:
    """Write a bar from 0 to 1 with a label beside it."""
    fill = tag("i", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%")
    return tag("span", tag("span", fill, class_="track"), tag("span", label), class_="share")
