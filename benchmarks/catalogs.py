"""Synthetic catalogs: real records in form and size, random in content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from models import gpt2, normal, write

from hilm.lineage import records
from hilm.lineage.fingerprint import fingerprint
from hilm.store.work import describe
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from hilm.lineage.catalog import Catalog

BATCH = 1000

Row: TypeAlias = dict[str, Any]


def template(folder: Path) -> tuple[Row, Row]:
    """Rows of a small model: its fingerprint and the model itself."""
    shapes = gpt2(width=64, layers=12, vocabulary=3000, positions=64)
    path = write(folder / "model", shapes, "F32", normal(np.random.default_rng(4)))
    with open_checkpoint(path) as checkpoint:
        model = describe(checkpoint, "model", (bytes(32),))
        return fingerprint(checkpoint).to_row(bytes(32)) | {"run_id": bytes(16)}, model | {
            "run_id": bytes(16)
        }


def strangers(rng: np.random.Generator, template: Row) -> list[Row]:
    """Fingerprints like the template with random digests, codes and vectors."""
    count = len(records.unpack(b"HLF0", template["tensor_hashes"], records.HASHES, 32).rows)
    digests = np.frombuffer(rng.bytes(count * records.HASHES.itemsize), records.HASHES)
    hashes = records.pack(b"HLF0", rng.bytes(32), digests, [""] * count)
    return [
        template
        | {name: rng.bytes(32) for name in ("fingerprint_key", "content_key")}
        | {name: rng.integers(-127, 128, 1024, np.int8) for name in ("position_vec", "anchored_vec")}
        | {"code": rng.bytes(64), "tensor_hashes": hashes}
        for _ in range(BATCH)
    ]


def fill(catalog: Catalog, entries: int, rng: np.random.Generator, print_row: Row, model: Row) -> None:
    """Commit so many random fingerprints, each with a model of its own."""
    for batch in range(entries // BATCH):
        prints = strangers(rng, print_row)
        named = [
            model | {"ref_key": rng.bytes(32), "content_key": row["content_key"], "name": f"{batch}-{n}"}
            for n, row in enumerate(prints)
        ]
        catalog.commit({"fingerprints": prints, "models": named})
