"""The library: what is in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hilm.html import Markup, join, table, tag
from hilm.quantities import count, figure, size
from hilm.web.pages.common import figures, link, model_link
from hilm.web.views import origin

if TYPE_CHECKING:
    from hilm.web.views import Library


def show_library(found: Library) -> Markup:
    """Totals and one row a model."""
    head = figures(
        [
            ("models", count(found.models)),
            ("parameters", count(found.parameters)),
            ("models with a reel", count(found.reels)),
            ("size of the reels", size(found.bytes)),
        ]
    )
    if not found.models:
        return join(
            [head, tag("p", "Nothing is in this store yet. Add a model: a folder, a file or a Hub id.")]
        )
    rows = [
        [
            model_link(row["model"]),
            count(row["parameters"]),
            row["mode"] or "fingerprint only",
            size(row["bytes"]),
            figure(row["bits_per_weight"]),
            origin(row["uri"]),
            link("/search", "relatives", model=row["model"]),
        ]
        for row in found.rows
    ]
    more = (
        f"; the first {len(rows)} are shown, the filter finds the others" if found.fitting > len(rows) else ""
    )
    columns = ["model", ">parameters", "reel", ">size", ">bits/weight", "from", "next"]
    return join([head, table(columns, rows, caption=f"{found.fitting:,} models{more}")])
