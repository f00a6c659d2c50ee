"""The lineage graph of a store, from its fingerprints alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import UnknownModel, UsageError
from hilm.files import write_file
from hilm.lineage.picture import draw_trees
from hilm.lineage.scan import ScanIndex
from hilm.lineage.search import SHORT_LIST, Print
from hilm.lineage.statistics import GRAM_NULL, critical_cosine
from hilm.lineage.tree import HINT, lineage_graph
from hilm.store.searching import query_print

if TYPE_CHECKING:
    from os import PathLike

    from hilm.lineage.schema import Row
    from hilm.lineage.tree import Edge, Graph
    from hilm.store.reading import Progress
    from hilm.store.store import Store

LIMIT = 3000
"""Models of a graph: distances between all of them are kept in memory."""


def lineage_of(
    store: Store,
    model: str | PathLike[str] | None,
    picture: str | PathLike[str] | None,
    progress: Progress,
) -> dict[str, Any]:
    """See ``Store.lineage``."""
    models, prints, query, graph = survey(store, model, progress)
    document: dict[str, Any] = {
        "query": query,
        "nodes": [_node(m, p, f) for m, p, f in zip(models, prints, graph.family, strict=True)],
        "edges": [_edge(prints, e) for e in graph.edges],
        "hints": [
            {
                "a": prints[i].name,
                "b": prints[j].name,
                "z": z,
                "sentence": f"{prints[i].name} and {prints[j].name} have similar token geometry (z {z:.1f}); "
                "common training data can cause this; hilm diff decides",
            }
            for i, j, z in graph.hints
        ],
    }
    if picture is not None:
        write_file(Path(picture), draw_trees(document["nodes"], document["edges"]))
        document["picture"] = os.fspath(picture)
    return document


def survey(
    store: Store, model: str | PathLike[str] | None, progress: Progress
) -> tuple[list[Row | None], list[Print], str | None, Graph]:
    """Models of the store, or those of one model's family, with their graph.

    Returns:
        Rows of the ``models`` table (None for a model that is not in the store), fingerprints, what the model
        asked for is called, and the graph.
    """
    if not store.exists:
        if model is not None:
            raise UnknownModel(f"the store {store.place} is empty", hint="hilm index or hilm encode fills it")
        return [], [], None, lineage_graph([], 0)
    query, ref_key = None, None
    if model is not None:
        query, _, ref_key = query_print(store, model, progress)
    index = ScanIndex.open(store.catalog, store.path / "cache")
    keys = [index.keys[row].tobytes() for row in _members(index, query)]
    if len(keys) > LIMIT:
        raise UsageError(f"{len(keys):,} models; a graph holds {LIMIT:,}", hint="hilm lineage MODEL")
    found = {row["content_key"]: row for row in store.catalog.rows("fingerprints", {"fingerprint_key": keys})}
    models: list[Row | None] = [*store.catalog.models({"content_key": set(found)})]
    models.sort(key=lambda m: m["name"] if m else "")
    prints = [Print(m["name"], found[m["content_key"]]) for m in models if m]
    if query is not None and all(m is None or m["ref_key"] != ref_key for m in models):
        models, prints = [None, *models], [query, *prints]
    return models, prints, query.name if query else None, lineage_graph(prints, len(index.keys))


def _members(index: ScanIndex, query: Print | None) -> set[int]:
    """Rows of the index that belong to the query's family or have its token geometry; without query all."""
    count = len(index.keys)
    if query is None:
        return set(range(count))
    forms = (np.asarray(query.row[name], np.int8) for name in ("position_vec", "anchored_vec"))
    near = index.candidates(*query.codes, SHORT_LIST)
    cosines = index.cosines(near, *forms)
    floors = critical_cosine(count), GRAM_NULL.mean + HINT * GRAM_NULL.sd
    found, alike = (set(near[cosines[:, k] >= floor].tolist()) for k, floor in enumerate(floors))
    queue = list(found)
    for row in queue:
        near = index.candidates(index.codes[:4, row], None, SHORT_LIST)
        related = near[index.cosines(near, *index.vectors[row].reshape(2, -1))[:, 0] >= floors[0]]
        queue += [k for k in related.tolist() if k not in found][: LIMIT + 1 - len(queue)]
        found.update(queue)
    return found | alike


def _node(model: Row | None, found: Print, family: int) -> dict[str, Any]:
    side = found.side()
    return {
        "model": found.name,
        "family": family,
        "parameters": side.parameters,
        "bits": side.bits,
        "zeros": side.zeros,
        "architecture": model["architecture"] if model else None,
        "declared_base": model["declared_base"] if model else None,
        "uri": model["uri"] if model else None,
    }


def _edge(prints: list[Print], edge: Edge) -> dict[str, Any]:
    judged, parent, child = edge.verdict, prints[edge.parent].name, prints[edge.child].name
    derived = edge.shown and judged.relation in {"fine-tune", "resized", "shares-ancestor"}
    return {
        "parent": parent,
        "child": child,
        "relation": judged.relation,
        "direction": "shown" if edge.shown else "not shown",
        "p_value": judged.p_value,
        "z": judged.z,
        "distance": edge.distance,
        "weight": edge.weight,
        "sentence": f"{child} is derived from {parent} ({judged.relation})" if derived else judged.sentence,
        "details": judged.details,
    }
