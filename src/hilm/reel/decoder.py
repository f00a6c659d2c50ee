"""Decode: read one tensor of a reel, or rebuild the original files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hilm.errors import ChecksumMismatch, HeaderError, StorageError, UsageError
from hilm.reel.container import ReelFile
from hilm.reel.layout import coded_view, cut_slabs
from hilm.reel.records import Kind
from hilm.reel.slab import decode_slab
from hilm.weights.dtypes import DTYPES, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from hilm.reel.schema import Sample, SourceFile, Tensor


class Reel:
    """A reel open for reading; a context manager. Nothing is decoded before it is asked for.

    Attributes:
        file: The container: manifest, index and checked records.
        tensors: Entries of the manifest by tensor name.
    """

    def __init__(self, file: ReelFile, threads: int | None = None) -> None:
        self.file = file
        self.tensors = {entry["name"]: entry for entry in file.manifest["tensors"]}
        self._threads = threads or os.cpu_count() or 1

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a local reel.

        Raises:
            NotAReel: The file is something else.
            VerificationError: It is damaged or cut off.
        """
        return cls(ReelFile.open(Path(path)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def mode(self) -> str:
        """``archive`` or ``sample``."""
        return self.file.manifest["mode"]

    @property
    def samples(self) -> list[Sample]:
        """Frames of a reel of samples."""
        return [s for s in self.file.manifest.get("samples", []) if not s["deleted"]]

    def words(self, name: str) -> NDArray[np.uint8]:
        """Stored little-endian bytes of one tensor, checked against its SHA-256.

        Raises:
            UsageError: There is no such tensor.
            ChecksumMismatch: The bytes are not those that were encoded.
        """
        pieces = list(self.pieces(name))
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint8)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32 in its own shape (complex: with a trailing axis of 2)."""
        entry = self._entry(name)
        dtype, words = DTYPES[entry["dtype"]], self.words(name)
        out = np.empty(len(words) * 8 // dtype.bits, np.float32)
        decode(dtype, words, out)
        return out.reshape([*entry["shape"], 2] if dtype.values > 1 else entry["shape"])

    def sample_values(self, sample: Sample) -> NDArray[np.float32]:
        """The exact values of one frame of samples, float32."""
        first = sample["record"]
        kinds = self.file.index["kind"][first + 1 :]
        chunks = -(-sample["fill"] // self.file.manifest["coding"]["chunk_elements"])
        present = chunks if len(kinds) and kinds[0] == Kind.SAMPLES else 0
        head, *data = self.file.records(first, 1 + present)
        return decode_slab(head, data, DTYPES["F32"], 1, sample["fill"]).view("<f4")

    def _entry(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise UsageError(f"the reel has no tensor {name!r}", hint="hilm show lists what is in it")
        entry = self.tensors[name]
        while (owner := entry.get("alias_of")) is not None:
            entry = self.tensors[owner]
        return entry

    def pieces(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """Stored bytes of one tensor, slab by slab; its SHA-256 is checked behind the last piece."""
        entry = self._entry(name)
        dtype, digest = DTYPES[entry["dtype"]], hashlib.sha256()
        slabs, _ = cut_slabs(*coded_view(entry["dtype"], entry["shape"]))
        if len(slabs) != len(entry["slabs"]):
            raise HeaderError("tiling", f"{entry['name']} is not cut as this version cuts tensors")
        for slab, (_, _, first, count) in zip(slabs, entry["slabs"], strict=True):
            head, *chunks = self.file.records(first, count)
            words = decode_slab(head, chunks, dtype, slab.rows, slab.columns, threads=self._threads)
            digest.update(words.data)
            yield words
        if digest.hexdigest() != entry["sha256"]:
            raise ChecksumMismatch(f"tensor {entry['name']} does not decode to what was encoded")

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
    """Rebuild the original files of an archive in a new folder, byte for byte.

    Args:
        reel: An open reel of mode ``archive``.
        out: The folder; it appears complete or not at all.
        tick: Called with the name of every file that is done.

    Raises:
        UsageError: The folder is not empty, or the reel holds samples only.
        ChecksumMismatch: The reel is damaged; nothing is left behind.
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
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            tick(file["name"])
    return [file["name"] for file in source["files"]]


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the name ``out`` on success and vanishes on failure."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder", hint="name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield folder
            folder.chmod(0o755)
            folder.replace(out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {out}: {error.strerror}") from error
