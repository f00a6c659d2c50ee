"""The folder of reels: which files may be deleted, and when."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from hilm.errors import HilmError, StorageError
from hilm.lineage.catalog import locked
from hilm.reel.carrier import SUFFIXES
from hilm.reel.journal import film_of, journal_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from hilm.lineage.catalog import Catalog

SUFFIX = ".reel.mp4"
LOCK_SECONDS = 600.0
"""How long to wait for another program's commit, which includes its reel of samples."""

RESUMABLE_SECONDS = 7 * 86_400.0
"""How long the part of an interrupted run is kept."""

_SAMPLES = re.compile(r"sample-[0-9a-f]{16}\.reel\.mp4")


@contextmanager
def hold(reels: Path) -> Iterator[None]:
    """Keep other programs from committing reels, and from sweeping.

    Raises:
        CatalogBusy: Another program held the shelf for ten minutes.
        StorageError: The operating system refuses something.
    """
    try:
        with locked(reels / "lock", LOCK_SECONDS):
            yield
    except OSError as error:
        if isinstance(error, HilmError):
            raise
        raise StorageError(f"cannot write {error.filename or reels}: {error.strerror}") from error


def discard(catalog: Catalog, reels: Path, names: Collection[str]) -> list[str]:
    """Delete those of these reels that no entry of the catalog refers to, and return their names."""
    kept = {row["uri"] for row in catalog.rows("reels", {"uri": names}, columns=["uri"])} if names else set()
    gone = sorted(name for name in set(names) - kept if (reels / name).is_file())
    for name in gone:
        for path in (reels / name, *((reels / name).with_suffix(suffix) for suffix in SUFFIXES)):
            path.unlink(missing_ok=True)
    return gone


def sweep(catalog: Catalog, reels: Path) -> None:
    """Delete what killed programs left: half-written files, and samples no entry refers to.

    The caller holds the shelf: between making a reel of samples and committing it there is no sweep.
    An archive that nobody refers to stays; encoding its model again takes its place.
    """
    names = [entry.name for entry in os.scandir(reels)]
    for name in names:
        if name.endswith(f"{SUFFIX}.part") and not _is_resumable(reels / name):
            _remove_abandoned(reels / name)
    discard(catalog, reels, [name for name in names if _SAMPLES.fullmatch(name)])


def _is_resumable(part: Path) -> bool:
    """Whether an interrupted run may still be taken up again: it kept a journal, within a week."""
    journal = journal_of(part)
    return journal.exists() and time.time() - journal.stat().st_mtime < RESUMABLE_SECONDS


def _remove_abandoned(part: Path) -> None:
    """Delete a file that is being written, unless its writer, who holds a lock on it, is alive."""
    with suppress(FileNotFoundError, BlockingIOError), part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), part.lstat()):
            part.unlink()
            for path in (journal_of(part), film_of(part)):
                path.unlink(missing_ok=True)
