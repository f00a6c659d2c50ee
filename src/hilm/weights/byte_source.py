"""Where stored bytes come from. Reads go straight into the caller's buffers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hilm.errors import SourceChanged, StorageError, TruncatedFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray


SPARSE = 8
"""Bytes passed over, for each that is wanted, from which reading ahead is waste."""


class Reader(Protocol):
    """What fills buffers with ranges of stored bytes."""

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the bytes from ``start`` on."""


class ByteSource(Reader, Protocol):
    """A file of known length that is read by ranges."""

    size: int

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def state(self) -> str:
        """Text that differs between any two versions of the file."""

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of one range."""

    def expect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Take note of the ranges that will be read next, in this order."""

    def check_unchanged(self) -> None:
        """Raise if the file is no longer the one that was opened."""

    def close(self) -> None:
        """Give the descriptor back."""


@dataclass(slots=True)
class FileSource:
    """A local file, read with ``pread``: no file-backed pages count against the process.

    Raises:
        StorageError: The operating system refuses to open or read.
        TruncatedFile: The file ends inside a range asked for.
        SourceChanged: Size, time stamp or inode differ from when it was opened.
    """

    path: Path
    size: int
    _descriptor: int
    identity: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path) -> FileSource:
        """Open a file for reading by ranges."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        status = os.fstat(descriptor)
        source = cls(path, status.st_size, descriptor, identify(status))
        source.expect([(0, source.size)])
        return source

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def state(self) -> str:
        """Path, size, time stamp and inode."""
        return f"{self.path}|{self.identity}"

    def expect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Tell the system to read far ahead, or not at all between ranges that are few and far apart."""
        if not hasattr(os, "posix_fadvise"):
            return
        wanted, first, last = 0, self.size, 0
        for start, stop in runs:
            wanted, first, last = wanted + stop - start, min(first, start), max(last, stop)
        sparse = SPARSE * wanted < last - first
        advice = os.POSIX_FADV_RANDOM if sparse else os.POSIX_FADV_SEQUENTIAL
        os.posix_fadvise(self._descriptor, 0, 0, advice)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of one range."""
        out = np.empty(stop - start, np.uint8)
        self.read_into(start, out)
        return out.tobytes()

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the bytes from ``start`` on."""
        view, position = out.data, start
        try:
            while view.nbytes:
                count = os.preadv(self._descriptor, [view], position)
                if count == 0:
                    self.check_unchanged()
                    raise TruncatedFile(f"{self.path} ends {view.nbytes:,} bytes too early")
                view, position = view[count:], position + count
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.path}: {error.strerror}") from error

    def check_unchanged(self) -> None:
        """Raise if the file is no longer the one that was opened."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise SourceChanged(f"{self.path} disappeared while it was being read") from error
        if identify(status) != self.identity:
            raise SourceChanged(f"{self.path} changed while it was being read")

    def close(self) -> None:
        """Close the descriptor; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def identify(status: os.stat_result) -> tuple[int, int, int]:
    """What tells one state of a file from another: size, modification time in ns, inode."""
    return status.st_size, status.st_mtime_ns, status.st_ino
