"""Acknowledge finished models: write the reel of their samples, then one commit to the catalog."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from hilm.store.planning import describe_entry, free_name
from hilm.store.shelf import SUFFIX, discard, hold
from hilm.store.work import Result, entry_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hilm.lineage.schema import Row
    from hilm.reel.writer import ReelFacts
    from hilm.store.planning import Plan

CODEC = "hilm-rans-1"


def commit(plan: Plan, run: bytes, results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Put finished models into the store; they are there when this returns.

    Reels that they replace are deleted; on failure those that were written for them.

    Args:
        plan: The plan they were made for.
        run: Random name of the run, 16 bytes.
        results: One or more.

    Returns:
        Name to what ``encode`` prints.

    Raises:
        StorageError: The reel cannot be written.
        CatalogError: The catalog cannot be written.
    """
    catalog, reels = plan.store.catalog, plan.store.reels
    with hold(reels):
        ready = sorted(_keep_names_apart(plan, results), key=lambda r: r.job.name)
        keys = [entry_key(r.job) for r in ready]
        files = {row["uri"] for row in catalog.rows("reels", {"entry_key": keys}, columns=["uri"])}
        files |= {r.archive.reel.path.name for r in ready if r.archive is not None}
        try:
            entries = _write_samples(ready, reels) if plan.mode == "sample" else _list_archives(ready)
            files |= {row["uri"] for row in entries}
            tables = {
                "fingerprints": [r.fingerprint for r in ready],
                "reels": entries,
                "models": [r.model for r in ready],
            }
            catalog.commit(
                {table: [row | {"run_id": run} for row in rows] for table, rows in tables.items()},
                replace=True,
            )
        finally:
            discard(catalog, reels, files)
    rows = {row["name"]: row for row in entries}
    return {r.job.name: _describe(r, rows.get(r.job.name), reels) for r in ready}


def _describe(result: Result, entry: Row | None, reels: Path) -> dict[str, Any]:
    facts = describe_entry(entry, reels, result.model) if entry else {"model": result.job.name}
    if result.archive is not None and result.job.base:
        facts |= {"unpaired": list(result.archive.unpaired), "energy_lost": result.archive.energy_lost}
    if result.archive is not None and result.archive.layouts:
        facts |= {"carrier": result.job.carrier[0], "layouts": result.archive.layouts}
    return facts | {"seconds": result.seconds}


def _keep_names_apart(plan: Plan, results: Sequence[Result]) -> Sequence[Result]:
    """Rename those whose name another program has taken since this one began."""
    catalog, named = plan.store.catalog, {r.job.name: r.model["ref_key"] for r in results}
    rows = catalog.rows("models", {"name": named.keys()}, columns=["name", "ref_key"])
    if all(row["ref_key"] == named[row["name"]] for row in rows):
        return results
    rows = catalog.rows("models", columns=["name", "ref_key"])
    owners = {row["name"]: row["ref_key"] for row in rows}
    apart = []
    for result in results:
        key, name = result.model["ref_key"], result.job.name
        if owners.get(name, key) != key:
            name = free_name(result.job.path, name.rpartition("/")[2], key, plan.owners | owners)
        apart.append(result if name == result.job.name else result.renamed(name))
    return apart


def _list_archives(results: Sequence[Result]) -> list[Row]:
    return [
        _entry(r, r.archive.reel, r.archive.weights, r.archive.frames, models=1)
        for r in results
        if r.archive is not None
    ]


def _write_samples(results: Sequence[Result], reels: Path) -> list[Row]:
    from hilm.reel.sampling import encode_samples  # noqa: PLC0415 - indexing needs no video library

    keys = hashlib.sha256(b"".join(entry_key(r.job) + r.model["content_key"] for r in results))
    out = reels / f"sample-{keys.hexdigest()[:16]}{SUFFIX}"
    samples = [r.sample for r in results if r.sample is not None]
    report = encode_samples(samples, out, preview=results[0].job.preview)
    return [
        _entry(r, report.reel, len(r.sample.values), max(len(r.sample.chunks), 1), models=len(results))
        for r in results
        if r.sample is not None
    ]


def _entry(result: Result, reel: ReelFacts, values: int, frames: int, *, models: int) -> Row:
    """Row of the ``reels`` table, without ``run_id``; models in one file share its bytes evenly."""
    return {
        "entry_key": entry_key(result.job),
        "name": result.job.name,
        "content_key": result.model["content_key"],
        "base_content_key": result.job.base_key or None,
        "reel_sha256": bytes.fromhex(reel.sha256),
        "uri": reel.path.name,
        "mode": result.job.mode,
        "format_version": 1,
        "codec": CODEC if result.job.carrier[0] == "packed" else result.job.carrier[0],
        "layout": "flat" if result.job.carrier[0] == "packed" else result.job.carrier[1],
        "frames": frames,
        "bytes": reel.size // models,
        "values": values,
        "bits_per_value": reel.bits_per_weight,
        "nmse": result.archive.nmse if result.archive else 0.0,
        "manifest_sha256": bytes.fromhex(reel.manifest_sha256),
        "lossless": result.job.mode != "small" and result.job.bits is None,
    }
