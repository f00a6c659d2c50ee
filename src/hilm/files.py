"""Write a file so that it appears under its name complete, or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hilm.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def write_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write pieces behind each other; folders are made as needed.

    Raises:
        StorageError: The operating system refuses; what was there before still is.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
