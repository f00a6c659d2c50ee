"""Writing a reel: it appears under its name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from hilm.errors import HeaderError, StorageError
from hilm.reel.crc32c import crc32c
from hilm.reel.manifest import canonical_json, check_manifest
from hilm.reel.records import RECORD, RECORD_LIMIT, check_records
from hilm.reel.sections import (
    ATOM,
    EMPTY_FRONT,
    FOOTER,
    FOOTER_BYTES,
    HEADER,
    HEADER_BYTES,
    UUID,
    check_place,
    front_crc32c,
    sealed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from hilm.reel.crc32c import Bytes
    from hilm.reel.records import Kind
    from hilm.reel.schema import Manifest, Totals

_ENTRY = struct.Struct("<QIIBBHI")  # one RECORD


@dataclass(frozen=True, slots=True)
class ReelFacts:
    """A finished reel.

    Attributes:
        path: Its name.
        size: Bytes of the whole file.
        sha256: SHA-256 of the whole file, hex.
        manifest_sha256: SHA-256 of the manifest, hex.
        payload_bytes: Bytes behind the front.
        bits_per_weight: 8 times that per weight; 0 without weights.
    """

    path: Path
    size: int
    sha256: str
    manifest_sha256: str
    payload_bytes: int
    bits_per_weight: float


class ReelWriter:
    """Write a reel; it appears under its name complete, or not at all.

    Everything goes to ``<out>.part``, which one writer at a time may hold. Leaving the ``with`` block
    before :meth:`finish` has succeeded removes it.

    Args:
        out: Name of the reel; an older file of that name is replaced by :meth:`finish`.
        front: A complete MP4, written first.

    Raises:
        StorageError: Another writer is at work on ``out``, or the operating system refuses.
    """

    def __init__(self, out: Path, front: bytes = EMPTY_FRONT) -> None:
        self.out = out
        self.front_size, self.front_crc32c = len(front), crc32c(front)
        self._part = out.with_name(out.name + ".part")
        self._entries = bytearray()
        self._position = HEADER_BYTES
        header = sealed(HEADER.pack(b"HILMREEL", 1, 0, 0, 1, 0))
        with self._storage():
            self._descriptor = _claim(self._part)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._write(front + ATOM.pack(1, b"uuid", 0, UUID) + header)
            undo.pop_all()

    def add_record(self, kind: Kind, data: Bytes, elements: int) -> int:
        """Append one record and return its number.

        Args:
            kind: What it holds.
            data: 1 … 2^31 bytes.
            elements: Elements coded in it; 0 for heads and blobs.

        Raises:
            HeaderError: ``data`` is empty or too large.
            StorageError: The operating system refuses to write.
        """
        size = memoryview(data).nbytes
        if not 0 < size <= RECORD_LIMIT:
            raise HeaderError("size", f"a record of {size:,} bytes")
        self._write(data)
        self._entries += _ENTRY.pack(self._position, size, crc32c(data), kind, 0, 0, elements)
        self._position += size
        return len(self._entries) // RECORD.itemsize - 1

    def finish(self, manifest: Manifest) -> ReelFacts:
        """Write index, manifest and footer, and give the file its name.

        Args:
            manifest: Everything but ``totals.bytes_payload`` and ``totals.bits_per_weight``, which are
                filled in here: bytes behind the front, and 8 times that per weight.

        Raises:
            HeaderError: The manifest breaks a rule, or does not fit the records.
            StorageError: The operating system refuses.
        """
        end = self._position + len(self._entries)
        raw = _settle_totals(check_manifest(manifest), ATOM.size + end + FOOTER_BYTES)
        index = np.frombuffer(self._entries, RECORD)
        check_records(manifest, index)
        check_place(manifest, 1, self.front_size)
        if self.front_crc32c != front_crc32c(manifest):
            raise HeaderError("front", "the manifest describes another front than the one written")
        manifest_digest = hashlib.sha256(raw)
        footer = FOOTER.pack(
            b"HILMEND1", end, len(raw), manifest_digest.digest(),
            self._position, len(self._entries), crc32c(self._entries), 1, end + len(raw),
        )  # fmt: skip
        self._write(self._entries + raw + sealed(footer))
        payload, weights = ATOM.size + end + len(raw) + FOOTER_BYTES, manifest["totals"]["weights"]
        with self._storage():
            digest = self._publish(payload)
        return ReelFacts(
            path=self.out,
            size=self.front_size + payload,
            sha256=digest,
            manifest_sha256=manifest_digest.hexdigest(),
            payload_bytes=payload,
            bits_per_weight=8 * payload / weights if weights else 0.0,
        )

    def _publish(self, atom_size: int) -> str:
        """Complete the atom header, move the file to its name, and return its SHA-256."""
        os.pwrite(self._descriptor, struct.pack(">Q", atom_size), self.front_size + 8)
        os.fsync(self._descriptor)
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._part.replace(self.out)
        os.close(self._descriptor)
        self._descriptor = -1  # from here on .part is another writer's
        folder = os.open(self.out.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return digest

    def _write(self, data: Bytes) -> None:
        view = memoryview(data).cast("B")
        with self._storage():
            while view:
                view = view[os.write(self._descriptor, view) :]

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            hint = "free some space and run the command again" if error.errno == errno.ENOSPC else ""
            raise StorageError(f"cannot write {self.out}: {error.strerror}", hint=hint) from error

    def close(self) -> None:
        """Remove what was written, unless it is finished."""
        if self._descriptor >= 0:
            self._part.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _settle_totals(manifest: Manifest, size: int) -> bytes:
    """Serialise the manifest with the payload it belongs to, itself included.

    Bits per weight are rounded up to thousandths that do not end in 0: then a larger payload never has
    the shorter spelling, and counting again converges.
    """
    totals: Totals = {**manifest["totals"]}
    raw, payload = b"", -1
    while payload != size + len(raw):
        payload = size + len(raw)
        totals["bytes_payload"] = payload
        if totals["weights"]:
            milli = -(-8000 * payload // totals["weights"])
            totals["bits_per_weight"] = (milli + (milli % 10 == 0)) / 1000
        raw = canonical_json({**manifest, "totals": totals})
    return raw


def _claim(part: Path) -> int:
    """Create ``part`` and lock it; a file that a dead writer left behind is removed first.

    The lock is taken before the name is trusted: whoever removed or replaced the file in between is seen
    by comparing inodes.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            if _lock(descriptor, part):
                return descriptor
            os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW)
            if _lock(descriptor, part):
                part.unlink()
            os.close(descriptor)


def _lock(descriptor: int, part: Path) -> bool:
    """Lock a file; False if ``part`` no longer names it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StorageError(f"another program is writing {part}", hint="wait until it has finished") from error
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), part.lstat())
    return False
