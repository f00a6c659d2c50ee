"""Rows to train on: read, shaped by a closed list of steps, checked, identified by content."""

from __future__ import annotations

from hilm.data.columns import check_columns
from hilm.data.loading import DataConfig, load_data, load_eval, source_digests
from hilm.data.rows import columns_of, rows_of, rows_sha256
from hilm.data.summary import preview, stats

__all__ = [
    "DataConfig",
    "check_columns",
    "columns_of",
    "load_data",
    "load_eval",
    "preview",
    "rows_of",
    "rows_sha256",
    "source_digests",
    "stats",
]
