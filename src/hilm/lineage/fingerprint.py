"""Fingerprint a checkpoint in one pass over its blocks."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from hilm.lineage import records
from hilm.lineage.anatomy import Matrix, dissect
from hilm.lineage.digest import TensorDigest, model_digest
from hilm.lineage.gram import KINDS, PAIRS, fold
from hilm.lineage.schema import FINGERPRINT_SPEC
from hilm.lineage.sketch import RUNS, code, energy, quantise
from hilm.lineage.tensor_pass import TensorPass, TensorTraits
from hilm.lineage.tokens import read_anchors
from hilm.weights.blocks import read_blocks
from hilm.weights.folder import is_remote

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hilm.weights.blocks import Block
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

_FLAG_F0, _FLAG_F1, _FLAG_F2, _FLAG_F3, _FLAG_F4 = 1, 2, 4, 8, 16
_KIND_SHIFT = 8


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """Everything the catalog keeps of one model's weights.

    Attributes:
        name: What the model is called; not part of the fingerprint.
        kind: Anchor kind of F2, or None without F2.
        mask: Missing anchors as 64 bits.
        position: F1 summed over all matrices, fixed point int64 [1024]; zeros if there is none.
        anchored: F2 likewise, int64 [2016].
        hashes: Record of F0.
        codes: Record of F3.
        profile: Record of F4.
        coverage: Share of the eligible values that could be decoded.
        nonfinite: NaN and infinite values seen in matrices.
        options: What else the result depends on, beside the weights: the anchors.
        seconds: Time the pass took.
    """

    name: str
    kind: str | None
    mask: int
    position: NDArray[np.int64]
    anchored: NDArray[np.int64]
    hashes: bytes
    codes: bytes
    profile: bytes
    coverage: float
    nonfinite: int
    options: dict[str, Any]
    seconds: float

    @property
    def position_form(self) -> NDArray[np.int8]:
        """F1 as int8 [1024]."""
        return quantise(self.position)

    @property
    def anchored_form(self) -> NDArray[np.int8]:
        """F2 folded, as int8 [1024]."""
        return fold(self.anchored)

    def key(self, content_key: bytes) -> bytes:
        """32 bytes: same content, same specification, same anchors."""
        options = json.dumps(self.options, sort_keys=True).encode()
        return hashlib.sha256(content_key + FINGERPRINT_SPEC.to_bytes(4, "little") + options).digest()

    @property
    def identity(self) -> bytes:
        """The bytes that equal weights share, whatever names, files and order they came in."""
        hashes = records.identical_part(self.hashes, records.HASHES, 32)
        codes = records.identical_part(self.codes, records.CODES, records.CODES_HEAD.itemsize)
        profile = records.identical_part(self.profile, records.PROFILES, 0, 8 * records.BINS)
        return b"".join((self.position.tobytes(), self.anchored.tobytes(), hashes, codes, profile))

    def to_row(self, content_key: bytes) -> dict[str, Any]:
        """A row of the catalog's ``fingerprints`` table, without ``run_id``."""
        position, anchored = self.position_form, self.anchored_form
        flags = _FLAG_F0 | _FLAG_F3 | _FLAG_F4
        flags |= _FLAG_F1 * bool(self.position.any()) | _FLAG_F2 * (self.kind is not None)
        number = 0 if self.kind is None else KINDS.index(self.kind) + 1
        return {
            "fingerprint_key": self.key(content_key),
            "content_key": content_key,
            "spec_version": FINGERPRINT_SPEC,
            "code": np.concatenate([code(position), code(anchored)]).astype("<u8").tobytes(),
            "position_vec": position,
            "position_scale": float(np.sqrt(energy(position))),
            "anchored_vec": anchored,
            "anchored_scale": float(np.sqrt(energy(anchored))),
            "flags": flags | number << _KIND_SHIFT,
            "tensor_hashes": self.hashes,
            "tensor_codes": self.codes,
            "profile": self.profile,
            "coverage": self.coverage,
            "nonfinite": self.nonfinite,
            "seconds": self.seconds,
        }


def fingerprint(
    checkpoint: Checkpoint, tick: Callable[[int], None] = lambda _: None, *, threads: int | None = None
) -> Fingerprint:
    """Read a checkpoint once and fingerprint it; the result does not depend on the number of threads.

    Args:
        checkpoint: An open checkpoint.
        tick: Called with the number of values after every block, by one thread at a time.
        threads: Tensors worked on at a time; by default two where there are as many cores.

    Raises:
        SourceChanged: A file was modified while it was read.
        TruncatedFile: A file ends too early.
    """
    with threadpool_limits(1, "blas"):
        work = FingerprintPass(checkpoint)
        if is_remote(checkpoint.uri):  # what is read in order is fetched ahead
            _read_in_order(work, checkpoint, tick)
        else:
            _read_side_by_side(work, checkpoint, tick, threads or min(2, os.cpu_count() or 1))
    checkpoint.check_unchanged()
    return work.finish()


def _read_in_order(work: FingerprintPass, checkpoint: Checkpoint, tick: Callable[[int], None]) -> None:
    for block in checkpoint.blocks(include_integer=True):
        work.update(block)
        tick(block.stop - block.start)


def _read_side_by_side(
    work: FingerprintPass, checkpoint: Checkpoint, tick: Callable[[int], None], threads: int
) -> None:
    """Let every thread take the next tensor, the largest first, until none is left."""
    lock, stopped = threading.Lock(), threading.Event()
    stored = [info for info in checkpoint.tensors.values() if info.alias_of is None]
    shared = iter([(info, checkpoint.source(info)) for info in sorted(stored, key=lambda t: -t.nbytes)])

    def run() -> None:
        part: TensorPass | None = None
        for block in read_blocks(shared):
            part = part or work.begin(block.info)
            part.update(block)
            traits = part.finish() if block.last else None
            with lock:
                tick(block.stop - block.start)
                if traits is not None:
                    work.add(traits)
                    part = None
            if stopped.is_set():
                return

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in as_completed([pool.submit(run) for _ in range(threads)]):
                done.result()
        finally:
            stopped.set()


class FingerprintPass:
    """Fingerprints a checkpoint whose blocks somebody else reads: each goes to ``update``.

    The caller keeps BLAS to one thread, so that results do not depend on their number.

    Args:
        checkpoint: The open checkpoint the blocks come from; anchors are read from it first.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._started = time.perf_counter()
        self._checkpoint = checkpoint
        self._anatomy = dissect(checkpoint)
        self._anchors, self._options = read_anchors(checkpoint, self._anatomy)
        self._matrices: dict[str, list[Matrix]] = {}
        for matrix in self._anatomy.matrices:
            self._matrices.setdefault(matrix.info.name, []).append(matrix)
        self._current: TensorPass | None = None
        self._position = np.zeros(RUNS, np.int64)
        self._anchored = np.zeros(PAIRS, np.int64)
        self._histogram = np.zeros(records.BINS, np.int64)
        self._hashes: list[tuple[str, TensorDigest, int]] = []
        self._codes: list[tuple[str, np.void]] = []
        self._profiles: list[tuple[str, np.void]] = []
        self._nonfinite = 0

    def update(self, block: Block) -> None:
        """Take the next block of the checkpoint, integers included."""
        if self._current is None:
            self._current = self.begin(block.info)
        self._current.update(block)
        if block.last:
            self.add(self._current.finish())
            self._current = None

    def begin(self, info: TensorInfo) -> TensorPass:
        """Start on a tensor; tensors may be worked on side by side, and added in any order."""
        matrices = self._matrices.get(info.name, ())
        return TensorPass(self._checkpoint, self._anatomy, self._anchors, info, matrices)

    def add(self, traits: TensorTraits) -> None:
        """Take what was found in a tensor."""
        name = traits.info.name
        self._position += traits.position
        self._anchored += traits.anchored
        self._histogram += traits.histogram
        self._hashes.append((name, traits.digest, traits.info.numel))
        self._codes.extend((name, row) for row in traits.codes)
        self._profiles.extend((name, row) for row in traits.profiles)
        self._nonfinite += traits.nonfinite

    def finish(self) -> Fingerprint:
        """Put the records together."""
        return Fingerprint(
            name=self._checkpoint.name,
            kind=self._anchors.kind if self._anchors and self._anchored.any() else None,
            mask=self._anchors.mask if self._anchors else 0,
            position=self._position,
            anchored=self._anchored,
            hashes=self._pack_hashes(),
            codes=self._pack_codes(),
            profile=self._pack_profiles(),
            coverage=self._anatomy.coverage,
            nonfinite=self._nonfinite,
            options=self._options,
            seconds=time.perf_counter() - self._started,
        )

    def _pack_hashes(self) -> bytes:
        table = [
            (*(int.from_bytes(part or b"", "little") for part in (d.exact, d.half, d.prefix)), numel)
            for _, d, numel in self._hashes
        ]
        head = model_digest(digest.exact for _, digest, _ in self._hashes)
        return records.pack(
            b"HLF0", head, np.array(table, records.HASHES), [name for name, *_ in self._hashes]
        )

    def _pack_codes(self) -> bytes:
        head = np.zeros((), records.CODES_HEAD)
        head["mask"] = self._anchors.mask if self._anchors else 0
        head["position"] = self._position / 2.0**32
        head["anchored"] = self._anchored / 2.0**32
        rows = np.array([row for _, row in self._codes], records.CODES)
        return records.pack(b"HLF3", head.tobytes(), rows, [name for name, _ in self._codes])

    def _pack_profiles(self) -> bytes:
        rows = np.array([row for _, row in self._profiles], records.PROFILES)
        names, tail = [name for name, _ in self._profiles], self._histogram.astype("<u8").tobytes()
        return records.pack(b"HLF4", b"", rows, names, tail)
