"""A graph and its weights appear under their names complete, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hilm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_free(path: Path, *, force: bool) -> None:
    """Refuse to replace a file.

    Raises:
        UsageError: It exists and ``force`` is not given.
    """
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="name a new file, or force it: --force, force=True")


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a place of the same name in a folder beside ``path``, which is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder)


def files_of(path: Path) -> list[Path]:
    """Return a graph's weights, if it keeps them beside it, and the graph: in the order of publication."""
    data = path.with_name(f"{path.name}.data")
    return [*([data] if data.exists() else []), path]


def publish(part: Path, path: Path) -> None:
    """Move a graph and its weights to their names, complete on the disk."""
    for file in files_of(part):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        file.replace(path.with_name(file.name))
