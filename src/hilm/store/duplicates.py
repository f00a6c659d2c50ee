"""What is in a store more than once, and what keeping differences instead would save."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, NetworkError
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.store.genealogy import survey
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from hilm.lineage.schema import Row
    from hilm.lineage.search import Print
    from hilm.lineage.tree import Edge
    from hilm.store.reading import Progress
    from hilm.store.store import Store

SMOOTH = ("fine-tune", "merge", "shares-ancestor", "subset")
"""Relations whose difference is small numbers of the same type."""

SPREAD = 9.0
"""The difference of normal weights at relative distance e takes log2(1 + 9 · e · 2^p) bits at p bits of
precision: within 0.3 bits of the entropy counted in BF16, F16 and F32 from e = 0.0003 to 0.3."""


def find_duplicates(store: Store, *, measure: bool, progress: Progress) -> dict[str, Any]:
    """See ``Store.dedupe``."""
    models, prints, _, graph = survey(store, None, progress)
    rows = [row for row in models if row is not None]
    groups: dict[bytes, list[int]] = {}
    for number, found in enumerate(prints):
        groups.setdefault(found.digest, []).append(number)
    exact = [_exact([rows[k] for k in group]) for group in groups.values() if len(group) > 1]
    near = [_near(rows[e.child], prints[e.parent], prints[e.child], e) for e in graph.edges if _counts(e)]
    best: dict[str, dict[str, Any]] = {}
    for entry in sorted(near, key=lambda n: -n["saved_estimate"]):  # of a merge, the parent that saves most
        best.setdefault(entry["model"], entry)
    if measure:
        places = {row["name"]: row["uri"] for row in rows}
        for done, entry in enumerate(best.values()):
            progress(done, len(best), entry["model"])
            entry["saved"] = _measure(places[entry["model"]], places[entry["base"]], entry["bytes"])
    return {
        "exact": exact,
        "near": list(best.values()),
        "exact_bytes": sum(group["saved"] for group in exact),
        "near_bytes": sum(e["saved_estimate"] if e["saved"] is None else e["saved"] for e in best.values()),
    }


def _measure(model: str, base: str, size: int) -> int | None:
    """Bytes that a delta reel is smaller by, found by writing it; None if weights are not there any more."""
    try:
        with open_checkpoint(model) as child, open_checkpoint(base) as parent, TemporaryDirectory() as folder:
            out = Path(folder) / "delta.reel.mp4"
            encode_delta(child, out, CheckpointBase(parent), preview=False)
            return size - out.stat().st_size
    except (InputError, NetworkError):
        return None


def _counts(edge: Edge) -> bool:
    return edge.verdict.relation in SMOOTH


def _exact(group: list[Row]) -> dict[str, Any]:
    """Models of equal values; the smallest files would be kept."""
    sizes = [row["bytes"] for row in group]
    return {
        "models": [row["name"] for row in group],
        "bytes": sum(sizes),
        "saved": sum(sizes) - min(sizes),
    }


def _near(row: Row, parent: Print, child: Print, edge: Edge) -> dict[str, Any]:
    """A model and the one it differs little from, with what a delta reel would save of its bytes."""
    same = edge.verdict.details["identical_share"]["b"]
    stored = 8 * row["bytes"] / max(1, row["parameters"])
    bits = (
        0.0 if edge.verdict.relation == "dtype-cast" else difference_bits(edge.distance, same, child, stored)
    )
    return {
        "model": row["name"],
        "base": parent.name,
        "relation": edge.verdict.relation,
        "bytes": row["bytes"],
        "identical_share": same,
        "bits_per_weight_estimate": bits,
        "saved_estimate": round(row["bytes"] * (1 - bits / stored)) if stored else 0,
        "saved": None,
    }


def difference_bits(distance: float, same: float, child: Print, stored: float) -> float:
    """Bits a weight that its difference needs: none where it is the same, at most what is stored.

    Args:
        distance: Relative distance of the models.
        same: Share of the values in tensors that are the same.
        child: Whose values are kept.
        stored: Bits a weight takes now.
    """
    if same >= 1:
        return 0.0
    precision = 8 if child.is_rounded else 11 if stored <= 16 else 24
    moved = distance / math.sqrt(1 - same)
    return (1 - same) * min(stored, math.log2(1 + SPREAD * moved * 2**precision))
