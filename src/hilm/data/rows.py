"""Rows as they are read, and what tells one set of rows from another: their content alone.

A dataset is a ``datasets.Dataset`` or ``IterableDataset``: ``Any``, as that is imported late.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hilm.errors import HilmError, InputError, NetworkError, NotFound, OfflineError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    Row = dict[str, Any]
    Dataset = Any


def columns_of(dataset: Dataset) -> dict[str, str]:
    """Return each column's type; of a stream whose columns are not declared, as its first row has them."""
    if dataset.features is None:
        return {name: type(value).__name__ for name, value in next(iter(dataset), {}).items()}
    return {name: str(getattr(kind, "dtype", kind)) for name, kind in dataset.features.items()}


def rows_of(dataset: Dataset) -> Iterator[Row]:
    """Yield the rows in order, read a thousand at a time.

    Raises:
        InputError: A row cannot be read.
    """
    with readable():
        for batch in dataset.iter(batch_size=1000):
            yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def canonical(row: Row) -> str:
    """Write a row as JSON with sorted keys and no spaces; what JSON does not have (dates, …) as text."""
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest(row: Row) -> bytes:
    """Return the SHA-256 of one row."""
    return hashlib.sha256(canonical(row).encode(errors="surrogatepass")).digest()


def rows_sha256(dataset: Dataset) -> str:
    """Return the SHA-256 over the canonical JSON of every row, in order, a line feed behind each.

    Raises:
        InputError: A row cannot be read.
    """
    state = hashlib.sha256()
    for row in rows_of(dataset):
        state.update(canonical(row).encode(errors="surrogatepass") + b"\n")
    return state.hexdigest()


@contextmanager
def readable(name: str = "the data") -> Iterator[None]:
    """Turn what the datasets library raises into errors of hilm.

    Raises:
        InputError: The rows are not in their format, or a name fits nothing.
        NotFound: The Hub does not have the data set.
        OfflineError: The network may not be used.
        NetworkError: The Hub does not answer.
    """
    missing = require("datasets.exceptions").DatasetNotFoundError
    try:
        yield
    except HilmError:
        raise
    except missing as error:
        raise NotFound(_first_line(error)) from error
    except ConnectionError as error:
        offline = "Offline" in str(error)
        raise (OfflineError if offline else NetworkError)(f"{name}: {_first_line(error)}") from error
    except (ValueError, TypeError, KeyError, OSError, require("datasets.exceptions").DatasetsError) as error:
        raise InputError(
            f"{name}: {_first_line(error.__cause__ or error)}",
            hint="check the file, its format and the names",
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
