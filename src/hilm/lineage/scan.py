"""Exact nearest fingerprints: a cache of the catalog's codes and vectors, and the loops over it.

The cache holds one row per fingerprint, ordered by key, in plain little-endian arrays: ``codes.u64``
(8 words by N, word-major), ``keys.bin`` (N by 32), ``vectors.i8`` (N by 2048: sign sketch, anchored Gram) and
``meta.json`` with their CRC-32. It belongs to one version of the table and can be deleted at any time.
"""

from __future__ import annotations

import json
import shutil
import uuid
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hilm.lineage.catalog import fsync, locked
from hilm.lineage.schema import CODE_BYTES, FINGERPRINT_SPEC, VECTOR_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

    from hilm.lineage.catalog import Catalog

Words: TypeAlias = NDArray[np.uint64]

EXHAUSTIVE_ROWS = 1 << 15  # below, comparing every vector costs less than 5 ms: no code can hide a relative
_BUILD_SECONDS = 600.0
_CURRENT_SPEC = {"spec_version": FINGERPRINT_SPEC}
_KEY = np.dtype("S32")  # compares all 32 bytes: trailing zeros are padding on both sides


@dataclass(frozen=True, slots=True, eq=False)
class ScanIndex:
    """Codes and vectors of every fingerprint of one table version.

    Attributes:
        version: Version of the ``fingerprints`` table.
        keys: uint8 [N, 32], ``fingerprint_key`` of each row, ascending.
        codes: uint64 [8, N], words 0-3 sign sketch, 4-7 anchored Gram.
        vectors: int8 [N, 2048], memory-mapped.
    """

    version: int
    keys: NDArray[np.uint8]
    codes: Words
    vectors: NDArray[np.int8]

    @classmethod
    def open(cls, catalog: Catalog, cache: Path) -> ScanIndex:
        """Map the cache of the catalog's latest version, building it when absent, stale or damaged.

        CRCs of codes and keys are checked; that of the vectors up to ``EXHAUSTIVE_ROWS`` rows, beyond which
        reading them all would cost more than the search.

        Raises:
            CatalogError: The table cannot be read.
            CatalogBusy: Another process has been building the cache for ten minutes.
        """
        folder = cache / catalog.id
        index = _load(folder, catalog.versions()["fingerprints"])
        if index is None:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "build.lock", _BUILD_SECONDS):
                version = catalog.versions()["fingerprints"]
                index = _load(folder, version) or _build(catalog, folder, version)
        return index

    def candidates(self, position: Words | None, anchored: Words | None, count: int) -> NDArray[np.int64]:
        """Rows worth comparing: the ``count`` nearest by either code, with all ties at the cut.

        Args:
            position: uint64 [4], the query's sign-sketch code, or None if it has none.
            anchored: uint64 [4], the query's anchored-Gram code, or None.
            count: Rows wanted per code.

        Returns:
            Ascending row numbers; every row of a small index.
        """
        rows = self.codes.shape[1]
        if rows <= EXHAUSTIVE_ROWS:
            return np.arange(rows)
        chosen = np.zeros(rows, np.bool_)
        for words, query in ((self.codes[:4], position), (self.codes[4:], anchored)):
            if query is not None:
                chosen |= nearest(words, query, count)
        return np.flatnonzero(chosen)

    def cosines(
        self, rows: NDArray[np.int64], position: NDArray[np.int8], anchored: NDArray[np.int8]
    ) -> NDArray[np.float64]:
        """Exact cosines of the stored int8 vectors.

        Args:
            rows: int64 [M] row numbers.
            position: int8 [1024], the query's sign sketch.
            anchored: int8 [1024], the query's anchored Gram.

        Returns:
            float64 [M, 2]; 0 where either vector is zero.
        """
        query = np.stack((position, anchored))
        out = np.empty((rows.size, 2), np.float64)
        _cosines(self.vectors, rows, query.ravel(), np.square(query, dtype=np.float64).sum(axis=1), out)
        return out


def nearest(words: Words, query: Words, count: int) -> NDArray[np.bool_]:
    """Mark the ``count`` columns of ``words`` nearest to ``query`` in Hamming distance, ties included.

    Args:
        words: uint64 [4, N].
        query: uint64 [4].
        count: Columns wanted, at least one.

    Returns:
        bool [N].
    """
    distances = np.empty(words.shape[1], np.uint16)
    histogram = np.zeros(257, np.int64)
    _distances(words, query, distances, histogram)
    cut = np.searchsorted(np.cumsum(histogram), count)
    return distances <= cut


@intrinsic
def _popcount(_context: Any, _word: Any) -> Any:  # noqa: ANN401 - the shape numba asks for
    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True)
def _distances(
    words: Words, query: Words, distances: NDArray[np.uint16], histogram: NDArray[np.int64]
) -> None:
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    q0, q1, q2, q3 = query[0], query[1], query[2], query[3]
    for i in range(distances.size):
        distances[i] = (
            _popcount(w0[i] ^ q0) + _popcount(w1[i] ^ q1) + _popcount(w2[i] ^ q2) + _popcount(w3[i] ^ q3)
        )
    for i in range(distances.size):  # apart, so that the loop above stays vectorised
        histogram[distances[i]] += 1


@njit(cache=True, nogil=True)
def _cosines(
    vectors: NDArray[np.int8],
    rows: NDArray[np.int64],
    query: NDArray[np.int8],
    energies: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    for i in range(rows.size):
        row = vectors[rows[i]]
        for half in range(2):
            dot = np.int32(0)  # 1024 products of at most 2^14 fit in 32 bits
            own = np.int32(0)
            for j in range(half * VECTOR_LENGTH, (half + 1) * VECTOR_LENGTH):
                x = np.int32(row[j])
                dot = np.int32(dot + x * np.int32(query[j]))
                own = np.int32(own + x * x)
            scale = np.sqrt(energies[half] * np.float64(own))
            out[i, half] = dot / scale if scale > 0 else 0.0


def _name(version: int) -> str:
    return f"fingerprints-v{version}-s{FINGERPRINT_SPEC}"


def _arrays(folder: Path, rows: int, mode: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - numpy's literal
    """The three arrays of a cache, mapped."""
    layout: Mapping[str, tuple[Any, tuple[int, ...]]] = {
        "keys.bin": (np.uint8, (rows, _KEY.itemsize)),
        "codes.u64": (np.dtype("<u8"), (CODE_BYTES // 8, rows)),
        "vectors.i8": (np.int8, (rows, 2 * VECTOR_LENGTH)),
    }
    if not rows:  # the system maps no empty file
        return {name: np.empty(shape, dtype) for name, (dtype, shape) in layout.items()}
    return {
        name: np.memmap(folder / name, dtype, mode, shape=shape) for name, (dtype, shape) in layout.items()
    }


def _index(version: int, arrays: Mapping[str, NDArray[Any]]) -> ScanIndex:
    for array in arrays.values():
        array.flags.writeable = False  # one compiled form of each loop, however the array was mapped
    return ScanIndex(version, arrays["keys.bin"], arrays["codes.u64"], arrays["vectors.i8"])


def _load(folder: Path, version: int) -> ScanIndex | None:
    """Open a cache if it is there and whole."""
    folder = folder / _name(version)
    try:
        checksums = json.loads((folder / "meta.json").read_bytes())["crc32"]
        sizes = {name: (folder / name).stat().st_size for name in checksums}
        rows = sizes["keys.bin"] // _KEY.itemsize
        arrays = _arrays(folder, rows, "r")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    for name, array in arrays.items():
        if sizes.get(name) != array.nbytes:
            return None
        if (name != "vectors.i8" or rows <= EXHAUSTIVE_ROWS) and zlib.crc32(array.data) != checksums[name]:
            return None
    return _index(version, arrays)


def _build(catalog: Catalog, folder: Path, version: int) -> ScanIndex:
    """Write the cache of one version aside, rename it into place, drop every other one.

    The caller holds the build lock, so whatever else lies in the folder is of the past.
    """
    temporary = folder / f"build-{uuid.uuid4().hex}"
    temporary.mkdir()
    batches = catalog.batches("fingerprints", ["fingerprint_key"], version, _CURRENT_SPEC)
    keys = np.unique(np.concatenate([np.empty(0, _KEY), *map(_keys, batches)]))
    arrays = _arrays(temporary, keys.size, "w+")
    arrays["keys.bin"][:] = keys.view(np.uint8).reshape(-1, _KEY.itemsize)
    _fill(arrays, keys, catalog, version)
    checksums = {name: zlib.crc32(array.data) for name, array in arrays.items()}
    for name in arrays:
        (temporary / name).touch()  # of no rows, too
    meta = {"version": version, "spec": FINGERPRINT_SPEC, "crc32": checksums}
    (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    for path in (*temporary.iterdir(), temporary):
        fsync(path)
    for stale in folder.iterdir():
        if stale.is_dir() and stale != temporary:
            shutil.rmtree(stale)
    temporary.rename(folder / _name(version))
    fsync(folder)
    return _index(version, arrays)


def _fill(
    arrays: Mapping[str, NDArray[Any]], keys: NDArray[np.bytes_], catalog: Catalog, version: int
) -> None:
    """Stream codes and vectors into their rows; rows of one key are equal, so any order will do."""
    columns = ["fingerprint_key", "code", "position_vec", "anchored_vec"]
    for batch in catalog.batches("fingerprints", columns, version, _CURRENT_SPEC):
        rows = np.searchsorted(keys, _keys(batch))
        arrays["codes.u64"][:, rows] = _fixed(batch["code"]).view("<u8").reshape(-1, CODE_BYTES // 8).T
        for half, column in enumerate(("position_vec", "anchored_vec")):
            values = batch[column].flatten().to_numpy().reshape(-1, VECTOR_LENGTH)
            arrays["vectors.i8"][rows, half * VECTOR_LENGTH : (half + 1) * VECTOR_LENGTH] = values


def _keys(batch: pa.RecordBatch) -> NDArray[np.bytes_]:
    return _fixed(batch["fingerprint_key"]).view(_KEY)


def _fixed(column: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """The bytes of a fixed-size binary column, without a copy."""
    width = column.type.byte_width
    return np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
