"""LanceDB, in a folder or on an object store: connections, new tables, errors, commits that collide.

On an object store nothing can be locked. There every commit is one conditional write that fails if another
writer came first, and is then tried again.
"""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hilm.cluster.executor import without_secrets
from hilm.errors import CatalogConflict, CatalogError, CatalogSchemaError, HilmError, NetworkError, NotAStore
from hilm.lineage.schema import SCHEMA_VERSION, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

_CONFIG = "config"
_CONFLICT = re.compile("commit conflict|concurrent writers|already exists", re.IGNORECASE)
_CREDENTIAL = re.compile("(AWS|AZURE|GOOGLE)_.*(KEY|SECRET|TOKEN|SAS)")
_QUERY = re.compile(r"\?[^\s)\"'<]*")
_GIST = 300
_PAUSE_SECONDS = 0.2


def connect(place: Path | str) -> Any:  # noqa: ANN401 - lancedb ships no types
    """Open the database of a folder or address; every read sees the latest commit."""
    import lancedb  # noqa: PLC0415 - over a second to import: only what opens a catalog pays for it

    return lancedb.connect(str(place), read_consistency_interval=timedelta(0))


def make_tables(database: Any) -> None:  # noqa: ANN401 - as above
    """Make those of the catalog's tables that are missing, empty."""
    from lancedb.index import BTree  # noqa: PLC0415 - as above

    for name, spec in TABLES.items():
        with translated(name, "create"):
            table = database.create_table(spec.name, schema=spec.schema, exist_ok=True)
            present = {column for index in table.list_indices() for column in index.columns}
            for column in spec.indexed:
                if column not in present:
                    table.create_index(column, config=BTree())


def open_address(address: str, *, create: bool, timeout: float) -> str:
    """Check the catalog at an address of an object store, made there if wanted, and return its id.

    A table ``config`` of one row, made last, says that the others are there.

    Raises:
        NotAStore: There is none, and none is to be made.
        CatalogSchemaError: It was written by a newer program.
        NetworkError: The object store does not answer, or refuses.
    """
    try:
        database = connect(address)
        config = _read_config(database)
        if config is None and create:
            insist(lambda: _make_catalog(database), timeout)
            config = _read_config(database)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, HilmError):
            raise
        raise NetworkError(
            f"cannot open {address}: {_gist(error)}",
            hint="the environment holds region and credentials: AWS_…, GOOGLE_… or AZURE_… variables",
        ) from None  # what lies below quotes requests
    if config is None:
        raise NotAStore(f"there is no catalog at {address}", hint="hilm index creates one")
    if config["schema"] > SCHEMA_VERSION:
        raise CatalogSchemaError(
            f"{address} has catalog schema {config['schema']}; this program knows up to {SCHEMA_VERSION}"
        )
    return uuid.UUID(config["catalog_id"]).hex


def _read_config(database: Any) -> dict[str, Any] | None:  # noqa: ANN401 - as above
    try:
        found: list[dict[str, Any]] = database.open_table(_CONFIG).search().limit(1).to_list()
    except ValueError as error:
        if "was not found" in str(error):
            return None
        raise
    return found[0]


def _make_catalog(database: Any) -> None:  # noqa: ANN401 - as above
    make_tables(database)
    if _read_config(database) is None:
        with translated(_CONFIG, "create"):
            row = {"catalog_id": uuid.uuid4().hex, "schema": SCHEMA_VERSION}
            database.create_table(_CONFIG, data=[row])


def insist(change: Callable[[], T], timeout: float) -> T:
    """Make a change, again as long as other writers come first.

    Raises:
        CatalogConflict: They did for ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return change()
        except CatalogConflict:
            if time.monotonic() >= deadline:
                raise
            time.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311 - no secret


@contextmanager
def translated(table: str, action: str) -> Iterator[None]:
    """Turn what the database raises into a ``CatalogError`` that names the table."""
    try:
        yield
    except HilmError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        kind = CatalogConflict if _CONFLICT.search(str(error)) else CatalogError
        raise kind(f"cannot {action} the catalog's {table}: {_gist(error)}") from None  # below are requests


def _gist(error: Exception) -> str:
    """The beginning of what the database says, without queries of addresses and without credentials."""
    text = _QUERY.sub("", without_secrets(str(error).partition("\n")[0]))
    for name, value in os.environ.items():
        if value and _CREDENTIAL.match(name):
            text = text.replace(value, "***")
    return text[:_GIST]
