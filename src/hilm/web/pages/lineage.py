"""The lineage tree, as a drawing in which one can click."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from hilm.html import Markup, join, tag
from hilm.lineage.picture import explain
from hilm.quantities import chance, count
from hilm.web.pages.common import link, notice

if TYPE_CHECKING:
    from hilm.lineage.picture import Line
    from hilm.web.views import Family

ROW, STEP, MARGIN, LETTER, NOTE = 34, 36, 16, 9.1, 7.4  # pixels; letters are about that wide


def show_family(found: Family, name: str) -> Markup:
    """The trees; how to read them; what fingerprints alone cannot say."""
    if not found.lines:
        return notice("No two models of this store are related.", "Add a model and what was made from it.")
    title = f"Lineage of {name}" if name else "Families of this store"
    legend = (
        "An arrow means derived from; a line related, the direction not being shown. Weights alone decided."
    )
    parts = [tag("h2", title), tag("p", legend, class_="faint"), _draw(found.lines, name)]
    if found.left_out:
        parts.append(tag("p", f"{found.left_out:,} more are not drawn; a model's own page shows its family."))
    if name:
        parts.append(tag("p", link("/lineage", "All families")))
    return join([*parts, *(tag("p", hint, class_="faint") for hint in found.hints)])


def _draw(lines: tuple[Line, ...], name: str) -> Markup:
    ends = [
        MARGIN + STEP * line.depth + LETTER * len(line.node["model"]) + NOTE * len(_note(line)) + 70
        for line in lines
    ]
    width, height = max(480, *map(round, ends)), ROW * len(lines) + 2 * MARGIN
    drawn = [_edge(lines, number) for number, line in enumerate(lines) if line.parent is not None]
    drawn += [_node(line, number, line.node["model"] == name) for number, line in enumerate(lines)]
    marker = tag(
        "marker", tag("path", d="M0,0 L6,3 L0,6 z"), id="tip", markerWidth="6", markerHeight="6", refX="6",
        refY="3", orient="auto", markerUnits="userSpaceOnUse",
    )  # fmt: skip
    alt = f"Tree of {len(lines)} models; each is a link"
    return tag(
        "svg", tag("defs", marker), *drawn, viewBox=f"0 0 {width} {height}", width=width, height=height,
        role="group", aria_label=alt, class_="tree",
    )  # fmt: skip


def _place(line: Line, number: int) -> tuple[int, int]:
    return MARGIN + STEP * line.depth, MARGIN + ROW * number + ROW // 2


def _edge(lines: tuple[Line, ...], number: int) -> Markup:
    """An elbow from below the parent to before the child."""
    line, parent = lines[number], lines[number].parent
    x, above = _place(lines[parent or 0], parent or 0)
    left, y = _place(line, number)
    edge = line.edges[0]
    shown = edge["direction"] == "shown"
    told = tag("title", f"{edge['sentence']}; p-value {chance(edge['p_value'])}")
    return tag(
        "path", told, d=f"M{x + 8},{above + 12} V{y} H{left - 5}", class_="edge",
        marker_end="url(#tip)" if shown else None,
    )  # fmt: skip


def _note(line: Line) -> str:
    return explain(line) or f"{count(line.node['parameters'])} parameters"


def _node(line: Line, number: int, chosen: bool) -> Markup:  # noqa: FBT001 - one caller
    """The model's name, a link to its page; what led to it, a link to the difference."""
    x, y = _place(line, number)
    name, note = line.node["model"], _note(line)
    kind = "node chosen" if chosen else "node"
    label = tag("text", name, x=x, y=y, class_=kind)
    parts = [tag("a", label, href=f"/model?{urlencode({'name': name})}")]
    text = tag("text", note, x=round(x + LETTER * len(name) + 14), y=y, class_="note")
    if line.edges:
        query = urlencode({"a": line.edges[0]["parent"], "b": name})
        text = tag("a", tag("title", "Compare them layer by layer"), text, href=f"/diff?{query}")
    return join([*parts, text])
