"""How two checkpoints are related."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from hilm.html import Document
from hilm.lineage.comparison import compare
from hilm.lineage.merges import FACTS, NEAREST
from hilm.lineage.verdict import Verdict, verdict
from hilm.store.reading import no_progress
from hilm.store.searching import search_store
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from os import PathLike

    from hilm.store.reading import Progress
    from hilm.store.store import Store


def diff(
    a: str | PathLike[str],
    b: str | PathLike[str],
    *,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Compare two checkpoints value by value and judge their relation.

    Args:
        a: A path, or the name of a model in ``store``.
        b: The same.
        store: Where names are looked up.
        progress: Called as tensors are compared.

    Returns:
        ``relation``, ``p_value``, ``score``, ``z``, ``sentence``, ``tensors`` (a, b, cosine, rel_l2,
        identical), ``only_a``, ``only_b``, ``details``.

    Raises:
        InputError: One is no checkpoint, or damaged.
        UnknownModel: Neither a path nor a name in the store.
    """
    with ExitStack() as stack:
        paths = [store.locate(x) if store else x for x in (a, b)]
        first, second = (stack.enter_context(open_checkpoint(path)) for path in paths)
        stack.enter_context(threadpool_limits(1, "blas"))
        progress(0, 1, f"{first.name} and {second.name}")
        found = compare(first, second)
        judged = verdict(found.evidence)
        progress(1, 1, judged.relation)
    judged = _as_parent(store, a, b, judged)
    return Document(
        {
            "relation": judged.relation,
            "p_value": judged.p_value,
            "score": judged.score,
            "z": judged.z,
            "sentence": judged.sentence,
            "tensors": [
                {"a": p.a, "b": p.b, "cosine": p.cosine, "rel_l2": p.rel_l2, "identical": p.identical}
                for p in found.pairs
            ],
            "only_a": list(found.only_a),
            "only_b": list(found.only_b),
            "details": judged.details,
        }
    )


def _as_parent(
    store: Store | None, a: str | PathLike[str], b: str | PathLike[str], judged: Verdict
) -> Verdict:
    """The verdict, with all parents if both are in the store and one was merged from the other and more."""
    if store is None or not store.exists or judged.relation in {"independent", *FACTS}:
        return judged
    rows = [store.find(model) for model in (a, b)]
    for child, parent in ((0, 1), (1, 0)):
        one, other = rows[child], rows[parent]
        if one is None or other is None:
            continue
        _, matches, _ = search_store(
            store, one["name"], "hierarchical", NEAREST, proof=True, progress=no_progress
        )
        for match in matches:
            if match.model["ref_key"] == other["ref_key"] and match.verdict.relation == "merge":
                told = match.verdict
                details = judged.details | {"merge": told.details["merge"]}
                return replace(judged, relation="merge", details=details, sentence=told.sentence)
    return judged
