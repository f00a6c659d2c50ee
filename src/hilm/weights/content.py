"""Identity of a checkpoint's bytes, computed in the pass that reads them anyway."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hilm.errors import ChecksumMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from hilm.weights.blocks import Block
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

_PIECE = 4 << 20


class ContentDigest:
    """An accumulator of SHA-256 over whole weight files.

    Feed it every block of the checkpoint, integers included, in storage order. Bytes that are not those of a
    block, in order and for the first time (headers, tensors an index hides, strided views), are read when it
    passes them.

    Args:
        checkpoint: The open checkpoint the blocks come from.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._hashes = [hashlib.sha256() for _ in checkpoint.files]
        self._positions = [0] * len(checkpoint.files)

    def update(self, block: Block) -> None:
        """Take the next block."""
        self.add(block.info, block.info.type.nbytes(block.start), block.words)

    def add(self, info: TensorInfo, offset: int, words: NDArray[np.uint8]) -> None:
        """Take bytes of a tensor from one of its bytes on, which need not be those of the file."""
        span = info.span
        start = span.start + offset
        if not info.in_order or start < self._positions[span.file]:
            return
        self._skip_to(span.file, start)
        self._hashes[span.file].update(words.data)
        self._positions[span.file] = start + len(words)

    def finish(self) -> tuple[bytes, ...]:
        """SHA-256 of every weight file, 32 bytes each, in the order of ``Checkpoint.files``.

        Raises:
            ChecksumMismatch: A file is not what the Hub states it to be.
        """
        digests = self.digests()
        for file, digest in zip(self._checkpoint.files, digests, strict=True):
            if file.sha256 not in {None, digest}:
                raise ChecksumMismatch(f"{file.name} does not have the SHA-256 that the Hub states")
        return digests

    def digests(self) -> tuple[bytes, ...]:
        """Give the same of whatever was taken, without asking what the Hub states."""
        for number, file in enumerate(self._checkpoint.files):
            self._skip_to(number, file.size)
        return tuple(h.digest() for h in self._hashes)

    def _skip_to(self, number: int, stop: int) -> None:
        for start in range(self._positions[number], stop, _PIECE):
            raw = self._checkpoint.read_file(number, start, min(start + _PIECE, stop))
            self._hashes[number].update(raw)
            self._positions[number] = start + len(raw)


def content_key(file_digests: Iterable[bytes]) -> bytes:
    """Name the bytes of a checkpoint, whatever its files are called: SHA-256, 32 bytes.

    Args:
        file_digests: SHA-256 of every weight file.
    """
    return hashlib.sha256(b"hilm-content-1" + b"".join(sorted(file_digests))).digest()
