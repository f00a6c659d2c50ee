"""One model: facts, the film, and a Hilbert picture per layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from hilm.html import Markup, facts, join, table, tag
from hilm.quantities import count, figure, share, size
from hilm.web.pages.common import bar, link, notice
from hilm.web.pictures import count_values, draw_histogram, draw_legend
from hilm.web.views import origin

if TYPE_CHECKING:
    from hilm.reel.pictures import Drawable
    from hilm.web.views import Layer, Model

PER_PAGE = 48
THUMBNAIL, LARGE = 128, 512


def show_model(found: Model, drawn: Drawable | None, first: int = 0) -> Markup:
    """Write the page.

    Args:
        found: The model.
        drawn: Its chosen tensor.
        first: Number of the first layer among the small pictures.
    """
    name = found.facts["model"]
    parts = [
        tag("h1", name),
        tag(
            "nav",
            link("/search", "Find relatives", model=name),
            link("/lineage", "See its lineage", model=name),
            link("/diff", "Compare with another", a=name),
            class_="next",
            aria_label="Next steps",
        ),
        tag("div", _facts(found), _film(found), class_="columns"),
    ]
    if found.problem:
        parts.append(notice(found.problem))
    if drawn is not None:
        parts.append(_large(name, drawn))
    return join([*parts, _layers(found, first)] if found.layers else parts)


def _facts(found: Model) -> Markup:
    told, total = found.facts, max(1, found.facts["parameters"])
    written = {
        "parameters": f"{told['parameters']:,}",
        "size of its files": size(told["bytes"]),
        "architecture": str(told["architecture"] or "unknown"),
        "from": origin(told["uri"]),
        "fingerprint covers": share(told["coverage"] or 0.0, 1),
        "content": told["content_key"][:16],
        **{
            f"reel: {reel['mode']}": f"{size(reel['bytes'])}, {reel['frames']:,} frames"
            for reel in told["reels"]
        },
    }
    roles = [[role, bar(n / total, share(n, total)), count(n)] for role, n in told["roles"].items()]
    notes = [tag("p", note, class_="faint") for note in told["notes"]]
    columns = ["role", "share", ">parameters"]
    return tag("section", tag("h2", "Facts"), facts(written), table(columns, roles), *notes)


def _film(found: Model) -> Markup:
    if not found.film:
        return tag(
            "section", tag("h2", "Film"), tag("p", "There is no reel of this model, so there is no film.")
        )
    source = f"/film?{urlencode({'model': found.facts['model']})}"
    told = f"Film of {found.facts['model']}: one frame for every tensor"
    video = tag("video", src=source, controls="", muted="", preload="metadata", aria_label=told)
    return tag(
        "section",
        tag("h2", "Film"),
        video,
        tag("p", "One frame per tensor. The reel is this video.", class_="faint"),
    )


def _large(name: str, drawn: Drawable) -> Markup:
    query, histogram = urlencode({"model": name, "tensor": drawn.name}), count_values(drawn)
    extent = " x ".join(map(str, drawn.shape)) or "scalar"
    picture = tag(
        "img",
        src=f"/picture?{query}&side={LARGE}",
        alt=f"Hilbert picture of {drawn.name}: its values along the curve, blue negative, orange positive",
        width=LARGE,
        height=LARGE,
        tabindex=0,
        class_="hilbert",
        data_values=f"/values?{query}",
        data_shape=",".join(map(str, drawn.shape)),
    )
    told = facts(
        {
            "shape": extent,
            "stored as": drawn.dtype,
            "elements": f"{math.prod(drawn.shape):,}"
            + (", of which 262,144 are drawn" if drawn.sampled else ""),
            "sigma": figure(histogram.sigma),
            "s (24 of 256 colours)": figure(histogram.scale),
        }
    )
    reading = tag(
        "output",
        "Point at the picture, or use the arrow keys in it, to read a value.",
        class_="reading",
        for_="hilbert",
    )
    side = tag("div", told, draw_legend(), reading, tag("h3", "Values"), draw_histogram(histogram))
    return tag("section", tag("h2", drawn.name, class_="mono"), tag("div", picture, side, class_="columns"))


def _layers(found: Model, first: int) -> Markup:
    shown, name = found.layers[first : first + PER_PAGE], found.facts["model"]
    pages = [
        tag("span", str(start // PER_PAGE + 1)) if start == first
        else link("/model", str(start // PER_PAGE + 1), name=name, first=str(start))
        for start in range(0, len(found.layers), PER_PAGE)
    ]  # fmt: skip
    turning = (
        [tag("nav", "pages: ", join(pages, " "), aria_label="Pages of layers")] if len(pages) > 1 else []
    )
    title = tag("h2", f"Layers ({len(found.layers):,})")
    return tag(
        "section", title, *turning, tag("div", *(_small(name, x, first) for x in shown), class_="sheet")
    )


def _small(name: str, layer: Layer, first: int) -> Markup:
    query = urlencode({"model": name, "tensor": layer.name, "side": THUMBNAIL})
    image = tag(
        "img", src=f"/picture?{query}", alt="", width=THUMBNAIL, height=THUMBNAIL, loading="lazy"
    )  # the link's text says what it is
    where = urlencode({"name": name, "tensor": layer.name, "first": first})
    told = tag("span", f"{layer.role}, {'x'.join(map(str, layer.shape)) or 'scalar'}", class_="faint")
    return tag(
        "a",
        image,
        tag("span", layer.name.replace(".", ".\N{ZERO WIDTH SPACE}")),
        told,
        href=f"/model?{where}",
    )
