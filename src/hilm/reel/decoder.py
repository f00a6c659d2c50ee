"""Decode: read one tensor of a reel, or rebuild the original files."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hilm.errors import ChecksumMismatch, StorageError, UsageError
from hilm.reel.carrier import Carried, Placement
from hilm.reel.container import ReelFile
from hilm.reel.delta_base import BaseTensor
from hilm.reel.layout import coded_view
from hilm.reel.manifest import ROUNDING_CODERS, canonical_json
from hilm.reel.records import count_sample_records, is_carried
from hilm.reel.rows import read_rows
from hilm.reel.slab import decode_slab, restore_slab
from hilm.reel.threads import in_threads
from hilm.weights.dtypes import DTYPES, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from hilm.reel.delta_base import Base
    from hilm.reel.schema import Pinned, Sample, SourceFile, Tensor


class Reel:
    """A reel open for reading; a context manager. Nothing is decoded before it is asked for.

    Attributes:
        name: What people call it: its file's name without the suffix.
        file: The container: manifest, index and checked records.
        tensors: Entries of the manifest by tensor name.
    """

    def __init__(self, file: ReelFile, threads: int | None = None, name: str = "the reel") -> None:
        self.file, self.name = file, name
        self._base: Base | None = None
        self.tensors = {entry["name"]: entry for entry in file.manifest["tensors"]}
        self._threads = threads or os.cpu_count() or 1

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> Self:
        """Open a local reel, or one behind an http or https URL.

        Raises:
            NotAReel: There is something else, or nothing.
            HeaderError: The file contradicts itself.
            VerificationError: It is damaged or cut off.
            NetworkError: It is remote, and cannot be read by ranges.
        """
        name = Path(place).name.removesuffix(".mp4").removesuffix(".reel")
        return cls(ReelFile.open(place), name=name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def mode(self) -> str:
        """``archive``, ``small``, ``delta`` or ``sample``."""
        return self.file.manifest["mode"]

    @property
    def pinned(self) -> Pinned | None:
        """What is known of the base of a delta."""
        return self.file.manifest["base"]

    @property
    def depth(self) -> int:
        """Deltas that stood on each other when it was made, this one included; 0 of what is no delta."""
        return self.pinned["depth"] if self.pinned else 0

    @property
    def state(self) -> str:
        """Digest of its manifest, which names all it holds."""
        return hashlib.sha256(canonical_json(self.file.manifest)).hexdigest()

    def stand_on(self, base: Base) -> None:
        """Decode differences against this base from now on."""
        self._base = base

    def describe(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Element type and shape of a tensor; None if there is none."""
        entry = self.tensors.get(name)
        return None if entry is None else (entry["dtype"], tuple(entry["shape"]))

    def digest(self) -> str:
        """Digest of the set of tensors it was made from."""
        source = self.file.manifest["source"]
        return source["digest"] if source else ""

    @property
    def samples(self) -> list[Sample]:
        """Frames of a reel of samples."""
        return [s for s in self.file.manifest.get("samples", []) if not s["deleted"]]

    def words(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Stored little-endian bytes of one tensor, checked against its SHA-256.

        Args:
            name: The tensor.
            rows: First and last-plus-one row along its first axis, as :func:`read_rows` reads them.

        Raises:
            UsageError: There is no such tensor, or it has no such rows.
            ChecksumMismatch: The bytes are not those that were encoded.
        """
        if rows is not None:
            return read_rows(self, name, *rows)
        out, position = np.empty(self.entry(name)["nbytes"], np.uint8), 0
        for piece in self.pieces(name):
            out[position : position + len(piece)] = piece
            position += len(piece)
        return out

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """One tensor, or rows of it, as float32 in its own shape (complex: with a trailing axis of 2)."""
        shape = self.entry(name)["shape"]
        dtype, words = DTYPES[self.entry(name)["dtype"]], self.words(name, rows)
        out = np.empty(dtype.count(len(words)), np.float32)
        decode(dtype, words, out)
        shape = shape if rows is None else [rows[1] - rows[0], *shape[1:]]
        return out.reshape([*shape, 2] if dtype.values > 1 else shape)

    def sample_values(self, sample: Sample) -> NDArray[np.float32]:
        """The exact values of one frame of samples, float32."""
        count = count_sample_records(sample, self.file.index)
        head, *chunks = self.file.records(sample["record"], count)
        return decode_slab(head, chunks, DTYPES["F32"], 1, sample["fill"]).view("<f4")

    def entry(self, name: str) -> Tensor:
        """What the manifest says of a tensor; of an alias, what it says of its owner."""
        if name not in self.tensors:
            raise UsageError(f"the reel has no tensor {name!r}", hint="hilm show lists what is in it")
        entry = self.tensors[name]
        while (owner := entry.get("alias_of")) is not None:
            entry = self.tensors[owner]
        return entry

    def pieces(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Stored bytes of one tensor, slab by slab; its SHA-256 is checked behind the last piece.

        Raises:
            UsageError: It is a difference, and the reel has no base to stand on.
            BaseMismatch: The base is not the one the difference was made against.
        """
        entry, expected, base = self.entry(name), self.base_sha256(name), self.base_tensor(name)
        if expected is None or base is None:
            yield from self._decode(entry, None)
            return
        try:
            yield from self._decode(entry, base)
        except ChecksumMismatch:
            base.check(expected)
            raise
        base.check(expected)

    def base_tensor(self, name: str) -> BaseTensor | None:
        """What a tensor is a difference from, to be read in order; None if it is none.

        Raises:
            UsageError: The reel has no base to stand on.
            BaseMismatch: The base has no such tensor.
        """
        if self.base_sha256(name) is None:
            return None
        if self._base is None:
            raise UsageError(
                f"{self.name} is a delta, and its base is not there",
                hint="name the base it was made against: --base MODEL",
            )
        entry = self.entry(name)
        return BaseTensor(self._base, entry["name"], entry["dtype"], entry["shape"])

    def base_sha256(self, name: str) -> str | None:
        """SHA-256 of the tensor that this one is a difference from; None if it is none."""
        return self.pinned["tensors"].get(self.entry(name)["name"]) if self.pinned else None

    def _decode(self, entry: Tensor, base: BaseTensor | None) -> Iterator[NDArray[np.uint8]]:
        dtype, digest = DTYPES[entry["dtype"]], hashlib.sha256()
        rounded = entry["coder"] in ROUNDING_CODERS
        _, columns, word = coded_view(entry["dtype"], entry["shape"])
        for begin, end, first, count in entry["slabs"]:
            rows, width = (1, end - begin) if "unit" in entry else (end - begin, columns)
            head, *chunks = self.file.records(first, count)
            old = base.take(rows * width * word) if base else None
            if is_carried(self.file.index, first):
                place = Placement(rows, width, entry.get("layout", "flat"))
                carried = self._develop(chunks, place)
                words = restore_slab(head, carried, dtype, place, rounded=rounded, threads=self._threads)
            else:
                words = decode_slab(
                    head, chunks, dtype, rows, width, base=old, rounded=rounded, threads=self._threads
                )
            digest.update(words.data)
            yield words
        if digest.hexdigest() != entry["sha256"]:
            raise ChecksumMismatch(f"tensor {entry['name']} does not decode to what was encoded")

    def _develop(self, records: list[bytes], place: Placement) -> list[Carried]:
        """Decode the frames of a slab."""
        from hilm.reel.video import decode_frame  # noqa: PLC0415 - packed reels need no video library

        carrier, companion = self.file.carrier, self.file.manifest["companion"]
        if carrier is None:
            raise ChecksumMismatch("a packet in a reel without a video")
        extradata = bytes.fromhex(companion["extradata"]) if companion else b""

        def work(number: int) -> Carried:
            packet, data = records[2 * number : 2 * number + 2]
            return Carried(place.read(number, decode_frame(carrier, extradata, packet)), data)

        return in_threads(work, range(len(records) // 2), self._threads)

    def segment(self, segment: list[Any]) -> Iterator[NDArray[np.uint8]]:
        """Bytes of one segment of an original file: a tensor, checked by its SHA-256, or blobs."""
        kind, place, *rest = segment
        if kind == "tensor":
            yield from self.pieces(place)
            return
        for number in range(place, place + rest[0]):
            yield np.frombuffer(self.file.record(number), np.uint8)

    def file_pieces(self, file: SourceFile) -> Iterator[NDArray[np.uint8]]:
        """Bytes of one original file, in order; its SHA-256 is checked behind the last piece."""
        digest = hashlib.sha256()
        for segment in file["segments"]:
            for piece in self.segment(segment):
                digest.update(piece.data)
                yield piece
        if digest.hexdigest() != file["sha256"]:
            raise ChecksumMismatch(f"file {file['name']} does not decode to what was encoded")


def decode_files(reel: Reel, out: Path, tick: Callable[[str], None] = lambda _: None) -> list[str]:
    """Rebuild the files a reel was made from in a new folder, byte for byte but for rounded weights.

    Args:
        reel: An open reel, not of samples; a delta stands on its base.
        out: The folder; it appears complete or not at all.
        tick: Called with the name of every file that is done.

    Raises:
        UsageError: The folder is not empty, or the reel holds samples only.
        VerificationError: The reel is damaged; nothing is left behind.
        StorageError: The files cannot be written.
    """
    source = reel.file.manifest["source"]
    if source is None:
        raise UsageError(
            "a reel of samples cannot be decoded to a checkpoint", hint="hilm show draws its frames"
        )
    with _new_folder(out) as folder:
        for file in source["files"]:
            path = folder / file["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                for piece in reel.file_pieces(file):
                    stream.write(piece.data)
                stream.flush()
                os.fsync(stream.fileno())
            tick(file["name"])
    return [file["name"] for file in source["files"]]


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that takes the name ``out`` on success and vanishes on failure."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder", hint="name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
            folder = Path(place) / "files"
            folder.mkdir()
            yield folder
            folder.replace(out)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {out}: {error.strerror}") from error
