"""Columns of the catalog's four tables.

Binary columns of ``fingerprints`` hold versioned little-endian records whose bytes are defined where the
fingerprint is computed; this module knows only their place. Keys are 32-byte digests (run ids 16 bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from hilm.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Row: TypeAlias = "dict[str, Any]"

SCHEMA_VERSION = 1
FINGERPRINT_SPEC = 1
VECTOR_LENGTH = 1024
CODE_BYTES = 64

_DIGEST = pa.binary(32)
_TIME = pa.timestamp("us", tz="UTC")
_VECTOR = pa.list_(pa.int8(), VECTOR_LENGTH)
_FILE = pa.struct(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("sha256", _DIGEST),
    ],
)
_ROLE_COUNT = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("tensors", pa.int32(), nullable=False),
        pa.field("parameters", pa.int64(), nullable=False),
    ],
)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One table of the catalog.

    Attributes:
        name: Name in the database, with the version of its layout.
        key: Column that is unique.
        stamp: Column that orders rows in time; the earliest of accidental duplicates counts.
        indexed: Columns with a B-tree.
        schema: Arrow columns, with ``hilm.schema`` in the metadata.
    """

    name: str
    key: str
    stamp: str
    indexed: tuple[str, ...]
    schema: pa.Schema


def _table(name: str, columns: Mapping[str, pa.DataType], *indexed: str) -> TableSpec:
    """Describe a table whose first column is its key; names ending in ``?`` may be null."""
    fields = [pa.field(column.rstrip("?"), kind, column.endswith("?")) for column, kind in columns.items()]
    schema = pa.schema(fields, metadata={"hilm.schema": str(SCHEMA_VERSION)})
    stamp = "created_at" if "created_at" in schema.names else "started_at"
    return TableSpec(f"{name}_v{SCHEMA_VERSION}", schema.names[0], stamp, indexed, schema)


_FINGERPRINTS = _table(
    "fingerprints",
    {
        "fingerprint_key": _DIGEST,
        "content_key": _DIGEST,
        "spec_version": pa.int32(),
        "code": pa.binary(CODE_BYTES),  # 256 bits of the sign sketch, then 256 bits of the anchored Gram
        "position_vec": _VECTOR,
        "position_scale": pa.float32(),
        "anchored_vec": _VECTOR,
        "anchored_scale": pa.float32(),
        "flags": pa.int64(),
        "tensor_hashes": pa.large_binary(),
        "tensor_codes": pa.large_binary(),
        "profile": pa.large_binary(),
        "coverage": pa.float32(),
        "nonfinite": pa.int64(),
        "seconds": pa.float32(),
        "run_id": pa.binary(16),
        "created_at": _TIME,
    },
    "fingerprint_key",
    "content_key",
)

_REELS = _table(
    "reels",
    {
        "entry_key": _DIGEST,  # one row per encoded model: several models may share one file
        "name": pa.string(),
        "content_key": _DIGEST,
        "base_content_key?": _DIGEST,
        "reel_sha256": _DIGEST,
        "uri": pa.string(),
        "mode": pa.string(),
        "format_version": pa.int32(),
        "codec": pa.string(),
        "layout": pa.string(),
        "frames": pa.int32(),
        "bytes": pa.int64(),
        "values": pa.int64(),
        "bits_per_value": pa.float32(),
        "nmse?": pa.float64(),
        "manifest_sha256": _DIGEST,
        "lossless": pa.bool_(),
        "run_id": pa.binary(16),
        "created_at": _TIME,
    },
    "entry_key",
    "content_key",
    "name",
)

_MODELS = _table(
    "models",
    {
        "ref_key": _DIGEST,
        "content_key": _DIGEST,
        "name": pa.string(),
        "uri": pa.string(),
        "revision?": pa.string(),
        "commit?": pa.string(),
        "endpoint?": pa.string(),
        "format": pa.string(),
        "kind": pa.string(),
        "architecture?": pa.string(),
        "declared_base?": pa.list_(pa.string()),
        "files": pa.list_(_FILE),
        "parameters": pa.int64(),
        "bytes": pa.int64(),
        "role_counts": pa.list_(_ROLE_COUNT),
        "notes": pa.list_(pa.string()),
        "run_id": pa.binary(16),
        "created_at": _TIME,
    },
    "ref_key",
    "content_key",
    "name",
)

_RUNS = _table(
    "runs",
    {
        "run_id": pa.binary(16),
        "command": pa.string(),
        "arguments": pa.large_string(),
        "versions": pa.large_string(),
        "executor": pa.string(),
        "workers": pa.int32(),
        "state": pa.string(),
        "total": pa.int64(),
        "done": pa.int64(),
        "skipped": pa.int64(),
        "failed": pa.int64(),
        "failures": pa.large_string(),
        "started_at": _TIME,
        "finished_at?": _TIME,
    },
    "run_id",
)

TABLES: Mapping[str, TableSpec] = MappingProxyType(
    {"fingerprints": _FINGERPRINTS, "reels": _REELS, "models": _MODELS, "runs": _RUNS},
)
"""The tables in the order a commit writes them: a model's row comes after all that it refers to."""


def to_arrow(table: str, rows: Sequence[Row]) -> pa.Table:
    """Rows as Arrow, the first of each key, with the time filled in where absent.

    Raises:
        CatalogError: A row lacks a column, has one too many, or holds a value of another type or length.
    """
    spec = TABLES[table]
    known = set(spec.schema.names)
    now = datetime.now(UTC)
    unique: dict[Any, Row] = {}
    for row in rows:
        if unknown := row.keys() - known:
            raise CatalogError(f"{table} has no column {min(unknown)}")
        unique.setdefault(row.get(spec.key), {spec.stamp: now, **row})
    try:
        batch = pa.Table.from_pylist(list(unique.values()), schema=spec.schema)
    except (ValueError, TypeError, OverflowError) as error:
        raise CatalogError(f"a row does not fit {table}: {error}") from error
    for field in spec.schema:
        if not field.nullable and batch[field.name].null_count:
            raise CatalogError(f"a row of {table} lacks {field.name}")
    return batch
