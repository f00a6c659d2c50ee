"""Trees of descent, laid out in rows for text and pictures alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Document = Mapping[str, Any]

MAX_ROWS = 500
"""Models of a picture; its height grows with them."""

SCALE = 2  # pixels per unit, so that print stays legible when enlarged
ROW, STEP, MARGIN, HEAD = 30, 34, 24, 5
INK, FAINT, LINE = (24, 28, 36), (96, 104, 116), (150, 158, 170)
SHADES = {
    "quantized": (176, 92, 0), "pruned": (150, 60, 140), "dtype-cast": (110, 110, 20), "merge": (0, 110, 80),
    "fine-tune": (20, 90, 190), "resized": (190, 40, 60), "subset": (190, 40, 60),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One model in a drawn tree.

    Attributes:
        node: Of the document.
        edges: From its parents; that of the tree first.
        depth: Steps from the root.
        parent: Number of the parent's line, or None.
        last: Whether it is its parent's last child.
    """

    node: Document
    edges: tuple[Document, ...]
    depth: int
    parent: int | None
    last: bool


def lay_out(nodes: Sequence[Document], edges: Sequence[Document]) -> list[Line]:
    """Put every model on a line of its own: families by size, parents before their children."""
    into: dict[str, list[Document]] = {}
    children: dict[str, list[Document]] = {}
    for edge in edges:
        into.setdefault(edge["child"], []).append(edge)
    for parents in into.values():
        parents.sort(key=lambda e: -(e["weight"] or 0.0))
        children.setdefault(parents[0]["parent"], []).append(parents[0])
    named = {node["model"]: node for node in nodes}
    lines: list[Line] = []

    size = Counter(node["family"] for node in nodes)
    roots = [n for n in reversed(nodes) if n["model"] not in into]
    roots.sort(key=lambda n: (size[n["family"]], -n["family"]))  # those placed first come last
    stack: list[tuple[str, int, int | None, bool]] = [(n["model"], 0, None, True) for n in roots]
    while stack:
        name, depth, parent, last = stack.pop()
        below = [e["child"] for e in children.get(name, ())]
        stack += [(child, depth + 1, len(lines), child == below[-1]) for child in reversed(below)]
        lines.append(Line(named[name], tuple(into.get(name, ())), depth, parent, last))
    return lines


def explain(line: Line) -> str:
    """What led to a model, in a few words."""
    if not line.edges:
        return ""
    relation, details = line.edges[0]["relation"], line.edges[0]["details"]
    match relation:
        case "merge":
            shares = ["" if e["weight"] is None else f" {e['weight']:.0%}" for e in line.edges]
            parents = [e["parent"] + share for e, share in zip(line.edges, shares, strict=True)]
            return f"merge of {', '.join(parents)}"
        case "quantized":
            more = f", {details['quantization']['bits']} bits"
        case "pruned":
            more = f", {details['pruning']['zeros']:.0%} zeros"
        case "resized":
            more = f": {', '.join(details['changes'])}"
        case "dtype-cast":
            more = f", {details['cast']}"
        case _:
            more = ""
    return f"{relation}{more}"


def draw_trees(nodes: Sequence[Document], edges: Sequence[Document]) -> bytes:
    """Draw the trees as a PNG: an arrow where a direction is shown, a plain line where not.

    Raises:
        UsageError: More models than a picture holds.
    """
    lines = lay_out(nodes, edges)
    if len(lines) > MAX_ROWS:
        raise UsageError(f"{len(lines):,} models; a picture holds {MAX_ROWS}", hint="leave out --picture")
    name_font, note_font = ImageFont.load_default(14 * SCALE), ImageFont.load_default(12 * SCALE)
    ends = [
        SCALE * (MARGIN + STEP * line.depth + 40)
        + name_font.getlength(line.node["model"])
        + note_font.getlength(explain(line))
        for line in lines
    ]
    width = int(max([*ends, SCALE * 420.0])) + SCALE * MARGIN
    sheet = Image.new("RGB", (width, SCALE * (2 * MARGIN + ROW * (len(lines) + 2))), "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        x, y = _place(line, number)
        if line.parent is not None:
            _draw_edge(pen, _place(lines[line.parent], line.parent), (x, y), line.edges[0])
        pen.text((x, y), line.node["model"], INK, name_font, "lm")
        shade = SHADES.get(line.edges[0]["relation"], FAINT) if line.edges else FAINT
        after = x + int(name_font.getlength(line.node["model"])) + 12 * SCALE
        pen.text((after, y), explain(line), shade, note_font, "lm")
    legend = "arrow: derived from    line: related, direction not shown"
    pen.text((SCALE * MARGIN, SCALE * (MARGIN + ROW * (len(lines) + 1))), legend, FAINT, note_font, "lm")
    png = BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def _place(line: Line, number: int) -> tuple[int, int]:
    """Left end and middle of a line's text, in pixels."""
    return SCALE * (MARGIN + STEP * line.depth), SCALE * (MARGIN + ROW * number + ROW // 2)


def _draw_edge(
    pen: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int], edge: Document
) -> None:
    """Draw an elbow from below the parent's name to before the child's."""
    x, gap = start[0] + 8 * SCALE, 6 * SCALE
    pen.line([(x, start[1] + 11 * SCALE), (x, end[1]), (end[0] - gap, end[1])], LINE, SCALE)
    if edge["direction"] == "shown":
        tip, size = end[0] - gap, HEAD * SCALE
        pen.polygon([(tip, end[1]), (tip - size, end[1] - size // 2), (tip - size, end[1] + size // 2)], INK)
