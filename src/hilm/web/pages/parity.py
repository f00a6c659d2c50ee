"""Parity reports: whether two implementations agree, and where they part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilm.html import Markup, facts, join, table, tag, written
from hilm.quantities import figure
from hilm.web.pages.common import bar, link
from hilm.web.views import SHOWN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def show_reports(names: Sequence[str]) -> Markup:
    """Links to the reports of the store."""
    if not names:
        return tag("p", "The store has no reports. Open one here, or keep it in the store's folder parity.")
    return tag("ul", *(tag("li", link("/parity", name, name=name)) for name in names))


def show_report(title: str, report: Mapping[str, Any]) -> Markup:
    """The verdict, the first divergence, and one row a stage; bars show the error over its bar."""
    told = {k: str(report[k]) for k in ("reference", "candidate", "verdict") if k in report}
    parted = report["first_divergence"]
    told["first divergence"] = written("", parted) if parted else "none"
    rows = [_row(stage) for stage in report["stages"][:SHOWN]]
    left = len(report["stages"]) - len(rows)
    columns = ["input", "stage", "mode", "precision", "status", "error over its floor"]
    more = [tag("p", f"{left:,} more stages are in the file.")] if left else []
    return join([tag("h2", title), facts(told), table(columns, rows), *more])


def _row(stage: Mapping[str, Any]) -> list[str]:
    ratio, limit = stage.get("ratio"), stage.get("bar")
    cell: str = "not measured"
    if isinstance(ratio, int | float):
        allowed = limit if isinstance(limit, int | float) and limit > 0 else ratio or 1
        cell = bar(ratio / allowed, f"{figure(ratio)} (bar {figure(allowed)})")
    status = tag("span", str(stage.get("status", "")), class_=f"badge {stage.get('status', '')}")
    return [*(str(stage.get(key, "")) for key in ("input", "stage", "mode", "precision")), status, cell]
