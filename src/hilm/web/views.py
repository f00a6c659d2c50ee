"""What each page shows, from the public verbs alone: plain data, no HTML.

Names are looked up in the catalog; what is read is what the catalog says, never a path that somebody typed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, NetworkError, UsageError
from hilm.lineage.picture import MAX_ROWS, lay_out
from hilm.store.films import open_place, shapes_of
from hilm.weights.folder import is_remote
from hilm.weights.roles import classify

if TYPE_CHECKING:
    from pathlib import Path

    from hilm.lineage.picture import Line
    from hilm.store import Store

SHOWN = 200
"""Rows of a table; what is left out is counted."""

SORTS = {
    "name": ("model", False),
    "largest first": ("parameters", True),
    "smallest first": ("parameters", False),
    "reel size": ("bytes", True),
    "bits per weight": ("bits_per_weight", False),
}
REELS = ("archive", "small", "delta")
REPORT = 10 << 20
"""Bytes of a parity report."""


@dataclass(frozen=True, slots=True)
class Library:
    """The store: rows of ``Store.list`` that are shown, how many fit the filter, sums over all of them."""

    rows: tuple[dict[str, Any], ...]
    fitting: int
    models: int
    parameters: int
    reels: int
    bytes: int


def view_library(store: Store, needle: str = "", sort: str = "name") -> Library:
    """Models whose name or reel mode contains the needle, in order; figures that are absent come last."""
    key, descending = SORTS.get(sort, SORTS["name"])
    models = store.list()["models"]
    filmed = [r["bytes"] for r in models if r["mode"]]
    sums = len(models), sum(r["parameters"] for r in models), len(filmed), sum(filmed)
    rows = [r for r in models if needle.lower() in f"{r['model']} {r['mode']}".lower()]
    there = sorted((r for r in rows if r[key] is not None), key=lambda r: r[key], reverse=descending)
    there += [r for r in rows if r[key] is None]
    return Library(tuple(there[:SHOWN]), len(rows), *sums)


@dataclass(frozen=True, slots=True)
class Layer:
    """One tensor of a model."""

    name: str
    shape: tuple[int, ...]
    role: str


@dataclass(frozen=True, slots=True)
class Model:
    """One model: what ``Store.show`` says, its tensors, and why there are none."""

    facts: dict[str, Any]
    layers: tuple[Layer, ...]
    chosen: str | None
    film: bool
    problem: str


def view_model(store: Store, name: str, tensor: str = "") -> Model:
    """One model of the store; the chosen tensor is the one asked for, else the largest matrix.

    Raises:
        UnknownModel: No model of that name.
    """
    row = store.row(name)
    facts, problem = store.show(row["name"]), ""
    layers: tuple[Layer, ...] = ()
    try:
        with open_place(store, place_of(store, row)) as source:
            shapes = shapes_of(source)
        layers = tuple(Layer(n, shape, classify(n, shape).type) for n, shape in shapes.items())
    except (InputError, NetworkError, UsageError):
        problem = "The weights are not where they were, and there is no reel of all of them: no pictures."
    names = [layer.name for layer in layers]
    matrices = sorted(layers, key=lambda x: (len(x.shape) > 1, x.role in {"attention", "mlp"}))
    chosen = tensor if tensor in names else matrices[-1].name if matrices else None
    return Model(facts, layers, chosen, bool(facts["reel"]), problem)


def place_of(store: Store, row: dict[str, Any]) -> str:
    """Where a model's values are read: its latest reel of all weights, else the checkpoint."""
    try:
        path = store.reel(row["name"], *REELS)
    except UsageError:
        return str(row["uri"])
    return str(path) if path.is_file() else str(row["uri"])


def known(store: Store, name: str) -> str:
    """What the verbs take for the model of that name, even where a path happens to be called the same.

    Raises:
        UnknownModel: No model of that name.
    """
    row = store.row(name)
    return str(row["uri"]) if os.path.exists(name) else str(row["name"])  # noqa: PTH110 - may be no path


def origin(uri: str) -> str:
    """Where a model came from, without folders of this machine."""
    return uri if is_remote(uri) else os.path.basename(uri.rstrip("/"))  # noqa: PTH119 - may be no path


@dataclass(frozen=True, slots=True)
class Family:
    """Trees of descent, line by line, and how many models did not fit the page."""

    lines: tuple[Line, ...]
    left_out: int
    hints: tuple[str, ...]


def view_family(store: Store, name: str = "") -> Family:
    """``Store.lineage`` of a model's family, or of every model that has relatives.

    Raises:
        UnknownModel: No model of that name.
        UsageError: Of more models than that, all are not arranged while somebody waits.
    """
    count = 0 if name else store.stats()["models"]
    if count > SHOWN:
        raise UsageError(
            f"{count:,} models: choose one to see its family", hint="hilm lineage arranges all of them"
        )
    found = store.lineage(known(store, name) if name else None)
    related = {end for edge in found["edges"] for end in (edge["parent"], edge["child"])}
    nodes = [n for n in found["nodes"] if name or n["model"] in related]
    lines = lay_out(nodes, found["edges"])
    hints = tuple(hint["sentence"] for hint in found["hints"][:SHOWN])
    return Family(tuple(lines[:MAX_ROWS]), max(0, len(lines) - MAX_ROWS), hints)


def list_reports(store: Store) -> tuple[str, ...]:
    """Names of the parity reports in the store's folder ``parity``."""
    return tuple(sorted(path.name for path in (store.path / "parity").glob("*.json")))


def view_report(store: Store, name: str) -> dict[str, Any]:
    """A parity report of the store, by the name that `list_reports` gives.

    Raises:
        UsageError: There is none of that name, or it is no report.
    """
    if name not in list_reports(store):
        raise UsageError(
            f"there is no report {name!r}", hint="hilm parity run A B --json > STORE/parity/A.json"
        )
    return read_report(store.path / "parity" / name)


def read_report(path: Path) -> dict[str, Any]:
    """A parity report as ``hilm parity run --json`` prints it.

    Raises:
        UsageError: The file is something else, or too large.
    """
    try:
        report = json.loads(path.read_bytes() if path.stat().st_size <= REPORT else b"")
        stages = [{**stage} for stage in report["stages"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(
            f"this is no parity report of at most {REPORT >> 20} MiB",
            hint="hilm parity run A B --input X=FILE --json",
        ) from None
    return {"verdict": "", "first_divergence": None, **report, "stages": stages}
