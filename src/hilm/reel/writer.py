"""Writing a reel: it appears under its name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from hilm.errors import HeaderError, InputError, SourceChanged, StorageError, UsageError
from hilm.reel.carrier import FPS, SIDE
from hilm.reel.crc32c import crc32c
from hilm.reel.journal import Journal, film_of
from hilm.reel.manifest import canonical_json, check_manifest
from hilm.reel.records import RECORD, RECORD_LIMIT, Kind, check_records
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
from hilm.reel.video import Film

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from hilm.reel.carrier import Carrier
    from hilm.reel.crc32c import Bytes
    from hilm.reel.records import Index
    from hilm.reel.schema import Companion, Front, Manifest, Totals

_ENTRY = struct.Struct("<QIIBBHI")  # one RECORD


@dataclass(frozen=True, slots=True)
class ReelFacts:
    """A finished reel.

    Attributes:
        path: Its name.
        size: Bytes of the whole file, and of its companion.
        sha256: SHA-256 of the whole file, hex.
        manifest_sha256: SHA-256 of the manifest, hex.
        payload_bytes: Bytes behind the front, and of the video that carries symbols.
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
    before :meth:`finish` has succeeded removes it, unless a journal was begun, by which the next run goes on.

    Args:
        out: Name of the reel; an older file of that name is replaced by :meth:`finish`.
        front: A complete MP4, written first.
        key: Hash of everything the bytes of the reel depend on. With it, a journal is kept.
        described: What the manifest will say of the front; the journal remembers it.
        carrier: Codec of the video that symbols ride in; without a suffix that is put in front.

    Attributes:
        resumed: Slabs taken over from an interrupted run.

    Raises:
        StorageError: Another writer is at work on ``out``, or the operating system refuses.
    """

    def __init__(
        self,
        out: Path,
        front: bytes = EMPTY_FRONT,
        *,
        key: str = "",
        described: Front | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        self.out, self.resumed, self._part = out, 0, part_of(out)
        self.front_size, self.front_crc32c = len(front), crc32c(front)
        self._entries = bytearray()
        self._position = HEADER_BYTES
        self._replaying, self._journal = bool(key), None
        self.film, self._film_size = None, 0
        head = front + ATOM.pack(1, b"uuid", 0, UUID) + sealed(HEADER.pack(b"HILMREEL", 1, 0, 0, 1, 0))
        with self._storage():
            self._descriptor = _claim(self._part, keep=self._replaying)
        with contextlib.ExitStack() as undo, self._storage():
            undo.callback(self.close)
            self._journal = Journal(self._part, key, described) if key else None
            found = bytearray(os.pread(self._descriptor, len(head), 0))
            found[len(front) + 8 : len(front) + 16] = bytes(8)  # the atom's size, which finish fills in
            if found != head:
                os.ftruncate(self._descriptor, 0)
                self._write(head)
                self._end_replay()
            if carrier is not None:
                self.film = Film(film_of(self._part), carrier)
            undo.pop_all()

    def replay(self) -> list[bytes] | None:
        """The records of the next slab where an interrupted run has written it; the index takes them up."""
        slabs = self._journal.slabs if self._journal else []
        if not self._replaying or self.resumed == len(slabs):
            return None
        found, position = [], self._position
        for offset, size, checksum, *_ in _ENTRY.iter_unpack(slabs[self.resumed]):
            with self._storage():
                data = os.pread(self._descriptor, size, self.front_size + ATOM.size + offset)
            if offset != position or crc32c(data) != checksum:
                return None
            found.append(data)
            position += size
        self._entries += slabs[self.resumed]
        self._position = position
        self.resumed += 1
        return found

    def _end_replay(self) -> None:
        """Cut off what an interrupted run has written beyond the slabs taken over."""
        if self._replaying and self._journal:
            with self._storage():
                os.ftruncate(self._descriptor, self.front_size + ATOM.size + self._position)
                os.lseek(self._descriptor, 0, os.SEEK_END)
                self._journal.keep(self.resumed)
        self._replaying = False

    def end_slab(self, first: int) -> None:
        """Take note that a slab is complete, from the record ``first`` on."""
        entries = bytes(self._entries[first * RECORD.itemsize :])
        if self._journal and self._journal.note(entries, self._position):
            self._sync()

    def _sync(self) -> None:
        if self._journal:
            with self._storage():
                os.fsync(self._descriptor)
                self._journal.write()

    @property
    def count(self) -> int:
        """Records so far."""
        return len(self._entries) // RECORD.itemsize

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
        self._end_replay()
        self._write(data)
        self._entries += _ENTRY.pack(self._position, size, crc32c(data), kind, 0, 0, elements)
        self._position += size
        return self.count - 1

    @property
    def index(self) -> Index:
        """Records so far, a copy."""
        return np.frombuffer(bytes(self._entries), RECORD)

    def add_frame(self, film: Film, frame: NDArray[np.uint8], elements: int) -> None:
        """Add a frame to the video; its record is filled in when the video is finished."""
        film.add(frame)
        self._entries += _ENTRY.pack(0, 0, 0, Kind.PACKET, bool(film.carrier.suffix), 0, elements)

    def finish_film(self, film: Film) -> tuple[Front | None, Companion | None]:
        """Complete the video and compare it with what it was given; what the manifest says of it.

        Raises:
            EncoderError: The encoder lost something.
        """
        packets, extradata = film.finish()
        index = np.frombuffer(self._entries, RECORD)
        places = index["kind"] == Kind.PACKET
        for column, values in zip(("offset", "size", "crc32c"), np.array(packets).T, strict=True):
            index[column][places] = values
        self._film_size = film.path.stat().st_size
        codec, pixels = film.carrier.codec, film.carrier.pixel_format
        if film.carrier.suffix:
            with film.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            name = companion_of(self.out, film.carrier.suffix).name
            return None, {
                "file": name, "size": self._film_size, "sha256": digest,
                "codec": codec, "pixel_format": pixels, "extradata": extradata.hex(),
            }  # fmt: skip
        self.front_size, self.front_crc32c = (
            self._film_size,
            crc32c(np.memmap(film.path, np.uint8, "r").data),
        )
        return {
            "size": self._film_size, "crc32c": f"0x{self.front_crc32c:08x}",
            "codec": codec, "pixel_format": pixels,
            "height": SIDE, "width": SIDE, "fps": [FPS, 1], "frames": [],
        }, None  # fmt: skip

    def finish(self, manifest: Manifest) -> ReelFacts:
        """Write index, manifest and footer, and give the file its name.

        Args:
            manifest: Everything but ``totals.bytes_payload`` and ``totals.bits_per_weight``, which are
                filled in here: bytes behind the front, and 8 times that per weight.

        Raises:
            HeaderError: The manifest breaks a rule, or does not fit the records.
            StorageError: The operating system refuses.
        """
        self._end_replay()
        end = self._position + len(self._entries)
        raw = _settle_totals(check_manifest(manifest), ATOM.size + end + FOOTER_BYTES + self._film_size)
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
        atom, weights = ATOM.size + end + len(raw) + FOOTER_BYTES, manifest["totals"]["weights"]
        payload = atom + self._film_size
        with self._storage():
            if self.film is not None:
                self._place_film(self.film)
            digest = self._publish(atom)
        return ReelFacts(
            path=self.out,
            size=self.front_size + atom + (self._film_size if manifest["companion"] else 0),
            sha256=digest,
            manifest_sha256=manifest_digest.hexdigest(),
            payload_bytes=payload,
            bits_per_weight=8 * payload / weights if weights else 0.0,
        )

    def _place_film(self, film: Film) -> None:
        """Give the video its name, or put it in front of everything written so far."""
        with film.path.open("ab") as file:
            if not film.carrier.suffix:
                with self._part.open("rb") as section:
                    section.seek(len(EMPTY_FRONT))
                    shutil.copyfileobj(section, file)
            file.flush()
            os.fsync(file.fileno())
        if film.carrier.suffix:
            film.path.replace(companion_of(self.out, film.carrier.suffix))
            return
        descriptor = os.open(film.path, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        film.path.replace(self._part)
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _publish(self, atom_size: int) -> str:
        """Complete the atom header, move the file to its name, and return its SHA-256."""
        os.pwrite(self._descriptor, struct.pack(">Q", atom_size), self.front_size + 8)
        os.fsync(self._descriptor)
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._part.replace(self.out)
        os.close(self._descriptor)
        self._descriptor = -1  # from here on .part is another writer's
        if self._journal:
            self._journal.remove()
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

    def close(self, *, keep: bool = True) -> None:
        """Remove what was written, unless it is finished, or may be kept and has a journal."""
        if self.film is not None:
            self.film.close()
        if self._descriptor >= 0:
            if keep and self._journal and self._journal.started:
                with contextlib.suppress(StorageError):
                    self._sync()
            else:
                self._part.unlink(missing_ok=True)
                if self._journal:
                    self._journal.remove()
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=not isinstance(error, InputError | SourceChanged | UsageError))


def part_of(out: Path) -> Path:
    """Where a reel is while it is written."""
    return out.with_name(out.name + ".part")


def companion_of(out: Path, suffix: str) -> Path:
    """Where the video beside a reel is."""
    return out.with_suffix(suffix)


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


def _claim(part: Path, *, keep: bool) -> int:
    """Create ``part`` and lock it; a file that a dead writer left behind is removed first, or taken as it is.

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
                if keep:
                    return descriptor
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
