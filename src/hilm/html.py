"""HTML for pages and notebooks: everything is escaped that is not markup already."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from hilm.quantities import ABSENT, chance, count, figure, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROWS = 20
"""Rows of a notebook's table."""


class Markup(str):
    """Text that is HTML and needs no escaping."""

    __slots__ = ()


def tag(name: str, *parts: str, **attributes: str | int | None) -> Markup:
    """Write an element.

    Args:
        name: Of the element.
        parts: What is in it.
        attributes: By name; ``_`` is written as a hyphen, at the end not at all; None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>" if name == "img" else f"<{name}{written}>{join(parts)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Write parts behind each other; text is escaped."""
    return Markup(between.join(part if isinstance(part, Markup) else escape(part) for part in parts))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Markup:
    """Write a table; a column whose title begins with ``>`` is flush right."""
    classes = ["n" if column.startswith(">") else None for column in columns]
    head = (
        tag("th", column.lstrip(">"), scope="col", class_=kind)
        for column, kind in zip(columns, classes, strict=True)
    )
    body = (
        tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, classes, strict=True)))
        for row in rows
    )
    title = (tag("caption", caption),) if caption else ()
    return tag("table", *title, tag("thead", tag("tr", *head)), tag("tbody", *body))


def facts(pairs: Mapping[str, str]) -> Markup:
    """Write names and values as a table of two columns."""
    return tag(
        "table",
        tag("tbody", *(tag("tr", tag("th", k, scope="row"), tag("td", v)) for k, v in pairs.items())),
    )


class Document(dict[str, Any]):
    """What a verb returns: a dictionary that a notebook shows as tables."""

    def _repr_html_(self) -> str:
        tables = {key: value for key, value in self.items() if _is_table(value)}
        plain = {key.replace("_", " "): written(key, self[key]) for key in self if key not in tables}
        return join([facts(plain), *(_tabled(key, value) for key, value in tables.items())])


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _tabled(title: str, things: Sequence[Mapping[str, Any]]) -> Markup:
    keys = [key for key, value in things[0].items() if not isinstance(value, dict | list)]
    rows = [[written(key, thing.get(key)) for key in keys] for thing in things[:ROWS]]
    more = f" (the first {ROWS} of {len(things):,})" if len(things) > ROWS else ""
    return table([key.replace("_", " ") for key in keys], rows, caption=title.replace("_", " ") + more)


def written(key: str, value: object) -> str:
    """Write one value of a document; its key tells the unit."""
    match value:
        case None | bool():
            return {None: ABSENT, True: "yes", False: "no"}[value]
        case int():
            return size(value) if "bytes" in key else count(value)
        case float():
            return chance(value) if key == "p_value" else figure(value)
        case dict():
            return ", ".join(f"{name}: {written(str(name), part)}" for name, part in value.items())[:400]
        case list() | tuple():
            return ", ".join(written(key, part) for part in value[:ROWS])[:400] or ABSENT
        case _:
            return str(value)
