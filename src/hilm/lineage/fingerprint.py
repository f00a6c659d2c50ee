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
from hilm.lineage.adapter import IS_ADAPTER, low_rank_pairs, sketch_product
from hilm.lineage.anatomy import Matrix, dissect
from hilm.lineage.digest import model_digest
from hilm.lineage.gram import KINDS, fold
from hilm.lineage.schema import FINGERPRINT_SPEC
from hilm.lineage.sketch import code, energy, quantise
from hilm.lineage.tables import spread
from hilm.lineage.tensor_pass import TensorPass, Traits
from hilm.lineage.tokens import read_anchors
from hilm.weights.blocks import read_blocks
from hilm.weights.folder import is_remote

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hilm.weights.blocks import Block
    from hilm.weights.checkpoint import Checkpoint

_FLAG_F0, _FLAG_F1, _FLAG_F2, _FLAG_F3, _FLAG_F4 = 1, 2, 4, 8, 16
_KIND_SHIFT = 8
PROFILED = 8
"""Matrices whose profiles are kept: enough to tell lattice and codebook."""


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
        form: NDArray[np.int8] = quantise(self.position)
        return form

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
        profile = records.identical_part(self.profile, records.PROFILES)
        return b"".join((self.position.tobytes(), self.anchored.tobytes(), hashes, codes, profile))

    def to_row(self, content_key: bytes) -> dict[str, Any]:
        """A row of the catalog's ``fingerprints`` table, without ``run_id``."""
        position, anchored = self.position_form, self.anchored_form
        flags = _FLAG_F0 | _FLAG_F3 | _FLAG_F4
        flags |= IS_ADAPTER * ("adapter" in self.options)
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
        traits, part = Traits(), None
        for block in read_blocks(shared):
            part = work.take(block, part, traits)
            with lock:
                tick(block.stop - block.start)
            if stopped.is_set():
                return
        with lock:
            work.add(traits)

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
        self._pairs = low_rank_pairs(checkpoint)
        for info in (tensor for pair in self._pairs for tensor in pair):
            self._matrices.pop(info.name, None)  # neither factor means anything alone
        self._options |= {"adapter": 1} if self._pairs else {}
        self._traits = Traits()
        self._current: TensorPass | None = None

    def update(self, block: Block) -> None:
        """Take the next block of the checkpoint, integers included."""
        self._current = self.take(block, self._current, self._traits)

    def take(self, block: Block, part: TensorPass | None, traits: Traits) -> TensorPass | None:
        """Take a block into ``part``, the pass over its tensor, or into a new one; return what stays open.

        What a tensor shows goes to ``traits`` at its end. Tensors may be worked on side by side.
        """
        if part is None:
            info = block.info
            matrices = self._matrices.get(info.name, ())
            part = TensorPass(self._checkpoint, self._anatomy, self._anchors, info, matrices, traits)
        part.update(block)
        if not block.last:
            return part
        part.finish()
        return None

    def add(self, traits: Traits) -> None:
        """Take over what was found in tensors by somebody else."""
        self._traits.add(traits)

    def finish(self) -> Fingerprint:
        """Put the records together."""
        traits = self._traits
        self._add_products(traits)
        return Fingerprint(
            name=self._checkpoint.name,
            kind=self._anchors.kind if self._anchors and traits.anchored.any() else None,
            mask=self._anchors.mask if self._anchors else 0,
            position=traits.position,
            anchored=traits.anchored,
            hashes=_pack_hashes(traits),
            codes=_pack_codes(traits, self._anchors.mask if self._anchors else 0),
            profile=_pack_profiles(traits),
            coverage=self._anatomy.coverage,
            nonfinite=traits.nonfinite,
            options=self._options,
            seconds=time.perf_counter() - self._started,
        )

    def _add_products(self, traits: Traits) -> None:
        """Sketch what an adapter adds to each matrix, under the digest of its B."""
        exact = {name: int.from_bytes(digest.exact, "little") for name, digest, _ in traits.digests}
        for down, up in self._pairs:
            sketched = sketch_product(self._checkpoint, down, up)
            if sketched is not None:
                traits.codes.append((up.name, (exact[up.name], *sketched[0])))
                traits.position += sketched[1]


def _pack_hashes(traits: Traits) -> bytes:
    table = [
        (*(int.from_bytes(part or b"", "little") for part in (d.exact, d.half, d.prefix)), numel)
        for _, d, numel in traits.digests
    ]
    head = model_digest(digest.exact for _, digest, _ in traits.digests)
    names = [name for name, *_ in traits.digests]
    return records.pack(b"HLF0", head, np.array(table, records.HASHES), names)


def _pack_codes(traits: Traits, mask: int) -> bytes:
    head = np.zeros((), records.CODES_HEAD)
    head["mask"] = mask
    head["position"] = traits.position / 2.0**32
    head["anchored"] = traits.anchored / 2.0**32
    rows = np.array([row for _, row in traits.codes], records.CODES)
    return records.pack(b"HLF3", head.tobytes(), rows, [name for name, _ in traits.codes])


def _pack_profiles(traits: Traits) -> bytes:
    ordered = sorted(traits.profiles, key=lambda p: (p[1][0], p[1][1].tobytes(), p[0]))
    some = spread(ordered, PROFILED)
    rows = np.array([row for _, row in some], records.PROFILES)
    return records.pack(b"HLF4", b"", rows, [name for name, _ in some])
