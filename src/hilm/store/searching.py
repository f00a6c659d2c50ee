"""Search a store: fingerprints first, and the weights themselves where fingerprints cannot decide."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from threadpoolctl import threadpool_limits

from hilm.errors import InputError, NetworkError, StorageError, UnknownModel
from hilm.lineage.adapter import find_applied, fits
from hilm.lineage.comparison import sampled_cast
from hilm.lineage.components import components
from hilm.lineage.fingerprint import fingerprint
from hilm.lineage.merges import as_merge, find_parents, replaced, siblings
from hilm.lineage.scan import ScanIndex
from hilm.lineage.search import Match, Method, Print, find_similar, rank
from hilm.lineage.sparse import find_sparse_merge, read_values, sampled_names
from hilm.lineage.statistics import GRAM_NULL
from hilm.lineage.units import match_units
from hilm.lineage.verdict import verdict
from hilm.store.work import reference_key
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from hilm.lineage.merges import Merge
    from hilm.lineage.verdict import Evidence
    from hilm.store.reading import Progress
    from hilm.store.store import Store
    from hilm.weights.checkpoint import Checkpoint

PROOFS = 8
"""Candidates whose weights are read at most."""

KIN = 64
"""Nearest models among which parents of a merge are looked for."""

COMPATIBLE = 512
"""Models that an adapter fits, at most: all pairs of them are compared."""

TRIO = 3
"""Models that a merge value by value takes at least: a base and two parents."""

ROUNDED = 0.998
"""Sketch cosine of a model and a copy rounded to 8 bits, at least."""

HINT = 2.2
"""Standard score of the token geometry below which weights are not read: of relatives the lowest was 2.7."""


def search_store(
    store: Store,
    model: str | PathLike[str],
    method: str,
    top_k: int,
    *,
    proof: bool,
    progress: Progress,
) -> tuple[Print, list[Match], dict[str, list[Match]]]:
    """Return the query, its matches, best first, and the relatives of its components, likewise."""
    if not store.exists:
        raise UnknownModel(f"the store {store.place} is empty", hint="hilm index or hilm encode fills it")
    query, path, ref_key = query_print(store, model, progress)
    index = ScanIndex.open(store.catalog, store.path / "cache")
    matches = find_similar(
        store.catalog,
        index,
        query,
        method=cast("Method", method),
        top_k=max(2 * top_k, KIN),
        without=ref_key,
    )
    if proof and method != "hierarchical":
        near = 2 * max(top_k, PROOFS)
        matches = rank(_prove(path, matches[:near], len(index.keys), progress) + matches[near:])
    matches = _name_parents(query, path if proof else None, matches)
    parts = {}
    for name, part in components(query).items() if method != "features" else ():
        kin = find_similar(store.catalog, index, part, method="hierarchical", top_k=KIN, without=ref_key)
        parts[name] = _once([m for m in kin if m.verdict.relation != "independent"])[:top_k]
    return query, _once(matches)[:top_k], parts


def _once(matches: list[Match]) -> list[Match]:
    """Every model once: equal weights beside different tokenizers have several fingerprints."""
    best: dict[bytes, Match] = {}
    for match in matches:
        best.setdefault(match.model["ref_key"], match)
    return list(best.values())


def _name_parents(query: Print, path: str | None, matches: list[Match]) -> list[Match]:
    """The matches, those that the query was merged from as its parents; with a path weights may be read."""
    related = [number for number, m in enumerate(matches) if m.verdict.relation != "independent"]
    merge = find_parents(query, [matches[number].print for number in related])
    if path is not None and merge is None:
        near = siblings(query, [matches[number].print for number in related], copies=True)
        merge = _read_parents(path, [matches[related[k]] for k in near], near)
    if merge is None:
        return matches
    numbers = [related[k] for k in merge.parents]
    names = [matches[k].model["name"] for k in numbers]
    base = matches[related[merge.base]].model["name"] if merge.base is not None else None
    for k in numbers:
        judged = as_merge(matches[k].verdict, query.name, merge, names, base)
        matches[k] = replace(matches[k], verdict=judged)
    return matches


def _read_parents(path: str, matches: list[Match], numbers: list[int]) -> Merge | None:
    """What a model was merged from value by value; what cannot be read any more is no parent."""
    if len(matches) < TRIO:
        return None
    found, values = [], []
    with suppress(InputError, NetworkError, StorageError), open_checkpoint(path) as checkpoint:
        names = sampled_names(checkpoint)
        child = read_values(checkpoint, names)
        for number, match in zip(numbers, matches, strict=True):
            with (
                suppress(InputError, NetworkError, StorageError),
                open_checkpoint(match.model["uri"]) as other,
            ):
                if other.tensors.keys() >= set(names):
                    values.append(read_values(other, names))
                    found.append(number)
        if len(found) >= TRIO and {len(v) for v in values} == {len(child)}:
            merge = find_sparse_merge(child, np.array(values))
            return replaced(merge, found) if merge else None
    return None


def query_print(store: Store, model: str | PathLike[str], progress: Progress) -> tuple[Print, str, bytes]:
    """Fingerprint of a path, or the stored one where the store knows the model as it is now.

    Returns:
        The fingerprint, where the weights are, and the model's ``ref_key``.
    """
    row = store.find(model)
    if row is not None:
        found = store.catalog.rows("fingerprints", {"content_key": row["content_key"]})
        return Print(row["name"], found[0]), row["uri"], row["ref_key"]
    with open_checkpoint(model) as checkpoint:
        ref_key = reference_key(checkpoint.uri)
        known = store.catalog.models({"ref_key": ref_key})
        if known and known[0]["commit"] == checkpoint.state.hex():
            found = store.catalog.rows("fingerprints", {"content_key": known[0]["content_key"]})
            return Print(known[0]["name"], found[0]), os.fspath(model), ref_key
        key = checkpoint.content_key()
        found = store.catalog.rows("fingerprints", {"content_key": key}) if key else []
        if found:  # the Hub states what the bytes are, and equal bytes were seen before
            return Print(checkpoint.name, found[0]), os.fspath(model), ref_key
        total, done = sum(info.numel for info in checkpoint.tensors.values()), 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total, checkpoint.name)

        row = fingerprint(checkpoint, tick).to_row(bytes(32))
        return Print(checkpoint.name, row), os.fspath(model), ref_key


def _prove(path: str, matches: list[Match], n: int, progress: Progress) -> list[Match]:
    """Read weights where fingerprints do not decide: of possible relatives, and of possible casts."""
    proved, left = [], PROOFS
    for number, match in enumerate(matches):
        read = _match_units if _is_unclear(match) else _look_for_cast if _may_be_cast(match) else None
        if read and left:
            left -= 1
            progress(number, len(matches), f"proof: {match.model['name']}")
            match = _reread(path, match, n, read)  # noqa: PLW2901 - judged again
        proved.append(match)
    return proved


def _is_unclear(match: Match) -> bool:
    """Whether nothing is established, but the token geometry hints at kinship; unknown, equal widths do."""
    evidence = match.evidence
    if match.verdict.relation != "independent":
        return False
    if evidence.gram is None:
        return evidence.a.width == evidence.b.width
    return GRAM_NULL.z(evidence.gram) >= HINT


def _may_be_cast(match: Match) -> bool:
    """Whether the models differ by no more than the roughest rounding."""
    return match.verdict.relation == "fine-tune" and (match.evidence.sketch or 0.0) >= ROUNDED


def _match_units(a: Checkpoint, b: Checkpoint, evidence: Evidence) -> Evidence:
    """Matched hidden units see through permutations and pruned widths."""
    units = match_units(a, b)
    if units is None:
        return evidence
    return replace(
        evidence, units=units.cosine, units_z=units.z, controls=units.controls, tokens=units.tokens
    )


def _look_for_cast(a: Checkpoint, b: Checkpoint, evidence: Evidence) -> Evidence:
    """Fingerprints show casts to bfloat16 only, values all."""
    cast, casted = sampled_cast(a, b)
    return replace(evidence, cast=cast, casted=casted)


def _reread(
    path: str, match: Match, n: int, read: Callable[[Checkpoint, Checkpoint, Evidence], Evidence]
) -> Match:
    """The match, judged again with the weights of both; unchanged if one of them is not there any more."""
    try:
        with (
            open_checkpoint(path) as a,
            open_checkpoint(match.model["uri"]) as b,
            threadpool_limits(1, "blas"),
        ):
            evidence = read(a, b, match.evidence)
    except (InputError, NetworkError, StorageError):
        return match
    return replace(match, evidence=evidence, verdict=verdict(evidence, n=n))


def describe_adapter(store: Store, query: Print) -> dict[str, Any]:
    """Models of the store that an adapter fits, and pairs of them that differ by it.

    Returns:
        ``compatible``: names of models with a matrix for each of the adapter's, which is no evidence, at most
        512; ``applied``: base, model, cosine and p_value of established pairs.
    """
    found: list[Print] = []
    for row in store.catalog.models({"kind": ["model"]}):
        prints = store.catalog.rows("fingerprints", {"content_key": row["content_key"]})
        other = Print(row["name"], prints[0])
        if len(found) < COMPATIBLE and fits(query, other):
            found.append(other)
    applied = find_applied(query, found) if found else []
    return {
        "compatible": [other.name for other in found],
        "applied": [
            {
                "base": found[pair.base].name,
                "model": found[pair.model].name,
                "cosine": pair.cosine,
                "p_value": pair.p_value,
            }
            for pair in applied
        ],
    }
