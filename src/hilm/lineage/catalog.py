"""The catalog: which models are known, their fingerprints, their reels (LanceDB).

In a folder one process writes at a time, under an advisory lock that the operating system frees when the
process dies. An object store has no such lock: there commits that collide are tried again, and fingerprints
are never deleted, for another writer may be about to refer to them. Every table commit is atomic, and a
model's own row is written last: seeing it means that everything it refers to is there. Readers take no lock
and never write.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from hilm.errors import CatalogBusy, CatalogConflict, CatalogSchemaError, NotAStore, UnknownModel
from hilm.lineage.database import connect, insist, make_tables, open_address, translated
from hilm.lineage.schema import SCHEMA_VERSION, TABLES, to_arrow

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import pyarrow as pa

    from hilm.lineage.schema import Row

COMPACT_FRAGMENTS = 64  # each commit adds one, and compaction rewrites them all
KEEP_VERSIONS = timedelta(hours=1)  # a reader pins a version for seconds
T = TypeVar("T")
Scalar: TypeAlias = bytes | int | str
Where: TypeAlias = "Mapping[str, Scalar | Collection[Scalar]]"

EVERY_ROW: Where = MappingProxyType({})
_CONFIG = "catalog.json"
_CONFIG_LIMIT = 1 << 16
_POLL_SECONDS = 0.05


class Catalog:
    """An open catalog; cheap to make, safe to keep, one per process is enough.

    Attributes:
        root: Folder of the catalog, or its address on an object store.
        id: Random name given at creation; caches are kept under it.
    """

    def __init__(self, root: Path | str, identity: str, lock_timeout: float) -> None:
        self.root = root
        self.id = identity
        self._lock_timeout = lock_timeout
        self._database = connect(root)

    @classmethod
    def open(cls, root: Path | str, *, create: bool, lock_timeout: float = 60.0) -> Self:
        """Open the catalog in ``root``; with ``create`` make one where nothing is yet.

        Args:
            root: Folder of the catalog; as text its address on an object store.
            create: Make the catalog when ``root`` is absent or empty.
            lock_timeout: Seconds a write waits for another writer.

        Raises:
            NotAStore: ``root`` holds something else, or nothing and ``create`` is false.
            CatalogSchemaError: The catalog was written by a newer program.
            NetworkError: The object store does not answer, or refuses.
        """
        if isinstance(root, str):
            return cls(root, open_address(root, create=create, timeout=lock_timeout), lock_timeout)
        root = root.resolve()
        if not (root / _CONFIG).exists():
            if root.exists() and (not root.is_dir() or any(root.iterdir())):
                raise NotAStore(f"{root} is not empty and holds no catalog")
            if not create:
                raise NotAStore(
                    f"there is no catalog in {root}", hint="hilm encode and hilm index create one"
                )
            _create(root)
        return cls(root, _read_config(root / _CONFIG), lock_timeout)

    def versions(self) -> dict[str, int]:
        """Version of every table; a table's version changes with every commit that touches it."""
        return {table: self._open(table).version for table in TABLES}

    def rows(
        self, table: str, where: Where = EVERY_ROW, *, columns: Sequence[str] | None = None
    ) -> list[Row]:
        """Rows of one table, each key once, oldest first.

        Args:
            table: One of ``fingerprints``, ``reels``, ``models``, ``runs``.
            where: Column to its value, or to a collection of values it may have; all must hold.
            columns: Columns wanted beside the key; all by default.

        Raises:
            CatalogError: The table cannot be read.
        """
        spec = TABLES[table]
        identity = {spec.key, spec.stamp, "run_id"}
        wanted = sorted(identity.union(columns)) if columns is not None else spec.schema.names
        with translated(table, "read"):
            query = self._open(table).search().select(wanted)
            if where:
                query = query.where(_condition(where))
            found = query.to_arrow().sort_by([(spec.stamp, "ascending"), ("run_id", "ascending")])
        if columns is not None:
            found = found.select(sorted({spec.key, *columns}))
        unique: dict[bytes, Row] = {}
        for row in found.to_pylist():
            unique.setdefault(row[spec.key], row)
        return list(unique.values())

    def models(self, where: Where = EVERY_ROW, *, columns: Sequence[str] | None = None) -> list[Row]:
        """Rows of ``models`` whose fingerprint is there; arguments as of ``rows``."""
        columns = None if columns is None else [*columns, "content_key"]
        found = self.rows("models", where, columns=columns)
        content: Where = {"content_key": {row["content_key"] for row in found}} if where else EVERY_ROW
        known = {row["content_key"] for row in self.rows("fingerprints", content, columns=["content_key"])}
        return [row for row in found if row["content_key"] in known]

    def batches(
        self, table: str, columns: Sequence[str], version: int, where: Where = EVERY_ROW
    ) -> Iterator[pa.RecordBatch]:
        """Stream columns of one pinned version, duplicates included, in no promised order."""
        with translated(table, "read"):
            pinned = self._open(table)
            pinned.checkout(version)
            query = pinned.search().select(list(columns))
            if where:
                query = query.where(_condition(where))
            yield from query.to_batches(4096)

    def commit(self, rows: Mapping[str, Sequence[Row]], *, replace: bool = False) -> dict[str, int]:
        """Write rows of several tables under one lock; they are there when this returns.

        A row whose key exists already is left alone, or overwritten with ``replace``; fingerprints that no
        model refers to after an overwrite are dropped. ``created_at`` is filled in where absent.

        Args:
            rows: Table name to rows; of several rows with one key the first counts.
            replace: Overwrite existing rows.

        Returns:
            Rows inserted or overwritten, per table.

        Raises:
            CatalogBusy: Another writer held the lock longer than the time limit.
            CatalogError: A row does not fit its table, or the table cannot be written.
        """
        staged = {table: to_arrow(table, rows[table]) for table in TABLES if rows.get(table)}
        written = {}
        with self._locked():
            replaced = self._content_of(staged) if replace else set()
            for table, batch in staged.items():
                merge = partial(_merge, key=TABLES[table].key, batch=batch, replace=replace)
                result = self._write(table, merge)
                written[table] = result.num_inserted_rows + result.num_updated_rows
            if replaced:
                self._drop_orphans(replaced)
            self._compact()
        return written

    def delete(self, names: Collection[str]) -> list[str]:
        """Forget models, their reel entries, and fingerprints that no other model shares.

        Returns:
            Locations of the reel files that no entry refers to any more.

        Raises:
            UnknownModel: A name is not in the catalog; nothing was deleted.
            CatalogBusy: Another writer held the lock longer than the time limit.
        """
        named: Where = {"name": names}
        with self._locked():
            doomed = self.rows("models", named, columns=["name", "content_key"])
            if missing := set(names) - {row["name"] for row in doomed}:
                raise UnknownModel(f"no model named {min(missing)} in the store")
            uris = {row["uri"] for row in self.rows("reels", named, columns=["uri"])}
            for table in ("models", "reels"):
                self._delete(table, named)
            self._drop_orphans({row["content_key"] for row in doomed})
            shared = {row["uri"] for row in self.rows("reels", {"uri": uris}, columns=["uri"])}
            self._compact()
        return sorted(uris - shared)

    def _open(self, table: str) -> Any:  # noqa: ANN401 - lancedb ships no types
        with translated(table, "open"):
            return self._database.open_table(TABLES[table].name)

    def _locked(self) -> AbstractContextManager[None]:
        if isinstance(self.root, Path):
            return locked(self.root / "writer.lock", self._lock_timeout)
        return nullcontext()

    def _write(self, table: str, change: Callable[[Any], T]) -> T:
        """Change a table; where writers do not lock one another out, again until no other comes first."""

        def attempt() -> T:
            with translated(table, "write"):
                return change(self._open(table))

        return insist(attempt, self._lock_timeout)

    def _content_of(self, staged: Mapping[str, pa.Table]) -> set[bytes]:
        """Content that the rows about to be overwritten refer to now."""
        if "models" not in staged:
            return set()
        keys = staged["models"]["ref_key"].to_pylist()
        return {row["content_key"] for row in self.rows("models", {"ref_key": keys}, columns=["content_key"])}

    def _drop_orphans(self, content: set[bytes]) -> None:
        """Delete fingerprints of ``content`` that no model refers to, and none can be about to."""
        if not isinstance(self.root, Path):
            return
        kept = self.rows("models", {"content_key": content}, columns=["content_key"])
        orphans = content - {row["content_key"] for row in kept}
        if orphans:
            self._delete("fingerprints", {"content_key": orphans})

    def _delete(self, table: str, where: Where) -> None:
        self._write(table, lambda opened: opened.delete(_condition(where)))

    def _compact(self) -> None:
        """Merge small fragments once there are many; old versions stay readable for an hour."""
        for name in TABLES:
            table = self._open(name)
            with suppress(CatalogConflict), translated(name, "compact"):  # a later commit does it, then
                if table.stats()["fragment_stats"]["num_small_fragments"] >= COMPACT_FRAGMENTS:
                    table.optimize(cleanup_older_than=KEEP_VERSIONS)


@contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, waiting up to ``timeout`` seconds.

    Raises:
        CatalogBusy: Somebody else held it all that time.
    """
    deadline = time.monotonic() + timeout
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise CatalogBusy(f"{path} was held by another process for {timeout:g} s") from None
                time.sleep(_POLL_SECONDS)
        yield  # closing the file frees the lock, as does the death of the process


def fsync(path: Path) -> None:
    """Ask the operating system to write a file or folder to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(root: Path) -> None:
    """Make a whole catalog beside its place, then rename: it is there completely or not at all."""
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = root.with_name(f".{root.name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        make_tables(connect(temporary))
        config = {"catalog_id": uuid.uuid4().hex, "schema": SCHEMA_VERSION}
        (temporary / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
        fsync(temporary / _CONFIG)
        fsync(temporary)
        temporary.rename(root)
        fsync(root.parent)
    except OSError:
        if not (root / _CONFIG).exists():  # otherwise another process was first, and its catalog serves
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_config(path: Path) -> str:
    """Check ``catalog.json`` and return the catalog's id."""
    with path.open("rb") as file:
        raw = file.read(_CONFIG_LIMIT)
    try:
        config = json.loads(raw)
        identity, schema = uuid.UUID(config["catalog_id"]).hex, int(config["schema"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NotAStore(f"{path} does not describe a catalog") from error
    if schema > SCHEMA_VERSION:
        raise CatalogSchemaError(
            f"{path.parent} has catalog schema {schema}; this program knows up to {SCHEMA_VERSION}"
        )
    return identity


def _condition(where: Where) -> str:
    """An SQL condition: every column equals its value, or one of its values."""
    return " AND ".join(f"{column} IN ({_literals(value)})" for column, value in where.items())


def _literals(value: Scalar | Collection[Scalar]) -> str:
    values = [value] if isinstance(value, bytes | int | str) else value
    return ", ".join(map(_literal, values)) or "NULL"  # IN (NULL) holds for no row


def _literal(value: Scalar) -> str:
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    if isinstance(value, int):
        return str(value)
    return "'" + value.replace("'", "''") + "'"


def _merge(table: Any, *, key: str, batch: pa.Table, replace: bool) -> Any:  # noqa: ANN401 - lancedb ships no types
    merging = table.merge_insert(key)
    if replace:
        merging = merging.when_matched_update_all()
    return merging.when_not_matched_insert_all().execute(batch)
