"""Fingerprint a checkpoint in one pass over its blocks."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from hilm.lineage import records
from hilm.lineage.anatomy import Anatomy, Matrix, dissect
from hilm.lineage.digest import DigestAccumulator, TensorDigest, model_digest
from hilm.lineage.gram import ANCHORS, KINDS, PAIRS, WORDS, Anchors, GramAccumulator, fold
from hilm.lineage.profile import Profile, ProfileAccumulator
from hilm.lineage.schema import FINGERPRINT_SPEC
from hilm.lineage.sketch import (
    RUNS,
    Sketch,
    SketchAccumulator,
    code,
    embedding_key,
    energy,
    fixed,
    matrix_key,
    quantise,
)
from hilm.lineage.tokens import find_words, read_vocabulary
from hilm.weights.checkpoint import BLOCK_VALUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint, TensorInfo
    from hilm.weights.streamer import Block

EMBEDDING_ROWS = 2048
"""Leading rows of the embedding that are sketched and digested alone: vocabularies grow at their end."""

MIN_WORDS = 24
"""Fewer anchor words than this in the vocabulary, and fixed ids are used instead."""

_FIRST_ID, _LAST_ID = 130, 2470  # of ``ids-64/1``: behind special tokens, inside every vocabulary
_FLAG_F0, _FLAG_F1, _FLAG_F2, _FLAG_F3, _FLAG_F4 = 1, 2, 4, 8, 16
_KIND_SHIFT = 8
_SINUSOID_LARGEST, _SINUSOID_POWER, _SINUSOID_NORM = 1.001, 0.01, 1e-3


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


def fingerprint(checkpoint: Checkpoint, tick: Callable[[int], None] = lambda _: None) -> Fingerprint:
    """Read a checkpoint once and fingerprint it.

    Args:
        checkpoint: An open checkpoint.
        tick: Called with the number of values after every block.
    """
    work = FingerprintPass(checkpoint)
    with threadpool_limits(1, "blas"):
        for block in checkpoint.blocks(include_integer=True):
            work.update(block)
            tick(block.stop - block.start)
    return work.finish()


class FingerprintPass:
    """The accumulators of all layers, fed one stream of blocks.

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
        self._position = np.zeros(RUNS, np.int64)
        self._anchored = np.zeros(PAIRS, np.int64)
        self._histogram = np.zeros(records.BINS, np.int64)
        self._hashes: list[tuple[str, TensorDigest, int]] = []
        self._codes: list[tuple[str, np.void]] = []
        self._profiles: list[tuple[str, Profile]] = []
        self._unread = self._nonfinite = 0

    def update(self, block: Block) -> None:
        """Take the next block of the checkpoint, integers included."""
        info = block.info
        if block.first:
            self._begin(info)
        if info.type.kind == "packed":  # cannot be decoded: its bytes still identify it
            self._digest.update(block.words.astype(np.float32), block.words)
        else:
            self._digest.update(block.values, block.words)
        if self._queue and block.start == self._queue[0].start:
            self._current = _MatrixPass(self._queue[0], self._anatomy, self._anchors)
        if self._queue:
            self._current.update(block)
            if block.stop == self._queue[0].stop:
                self._done.append((self._queue.pop(0), self._current))
        if block.last:
            self._end(info)

    def _begin(self, info: TensorInfo) -> None:
        packed = info.type.kind == "packed"
        shape = (info.nbytes,) if packed else info.shape
        prefix = None
        if info.name in self._anatomy.tables and info.shape[0] > info.shape[1]:
            prefix = EMBEDDING_ROWS * info.shape[1]
        self._digest = DigestAccumulator("U8" if packed else info.dtype, shape, prefix_values=prefix)
        self._queue = list(self._matrices.get(info.name, ()))
        self._done: list[tuple[Matrix, _MatrixPass]] = []
        self._unread += info.numel * packed * (len(info.shape) > 1)

    def _end(self, info: TensorInfo) -> None:
        digest = self._digest.finish()
        self._hashes.append((info.name, digest, info.numel))
        for matrix, work in self._done:
            profile = work.profile.finish()
            self._profiles.append((info.name, digest, profile))
            self._histogram += profile.histogram
            sketch = None if self._is_sinusoid(matrix, profile) else work.finish_sketch()
            if sketch is None:
                self._nonfinite += self._count_nonfinite(matrix)
                continue
            self._position += fixed(sketch.vector)
            gram = work.finish_gram()
            self._anchored += gram
            self._codes.append((info.name, _code_row(matrix, digest, sketch, gram, work.is_embedding)))

    def _is_sinusoid(self, matrix: Matrix, profile: Profile) -> bool:
        """Whether this is a fixed position table: every row has norm √(C/2), no value is above 1.

        Such tables match exactly between strangers. Few matrices pass the first test, so reading those again
        costs nothing.
        """
        power = profile.value("mean") ** 2 + profile.value("std") ** 2
        if profile.value("max_abs") > _SINUSOID_LARGEST or abs(power - 0.5) > _SINUSOID_POWER:
            return False
        expected = np.sqrt(matrix.columns / 2)
        norms = (np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1)) for rows in self._rows_of(matrix))
        return all(np.abs(norm - expected).max() <= _SINUSOID_NORM for norm in norms)

    def _count_nonfinite(self, matrix: Matrix) -> int:
        """NaN and infinite values of a matrix that could not be sketched; reads it again, which is rare."""
        return sum(int(rows.size - np.isfinite(rows).sum()) for rows in self._rows_of(matrix))

    def _rows_of(self, matrix: Matrix) -> Iterator[NDArray[np.float32]]:
        step = max(1, BLOCK_VALUES // matrix.columns)
        first = matrix.index * matrix.rows
        for row in range(0, matrix.rows, step):
            stop = min(row + step, matrix.rows)
            yield self._checkpoint.read_rows(matrix.info.name, first + row, first + stop)

    def finish(self) -> Fingerprint:
        """Put the records together."""
        eligible = sum(m.rows * m.columns for m in self._anatomy.matrices) + self._unread
        return Fingerprint(
            name=self._checkpoint.name,
            kind=self._anchors.kind if self._anchors and self._anchored.any() else None,
            mask=self._anchors.mask if self._anchors else 0,
            position=self._position,
            anchored=self._anchored,
            hashes=self._pack_hashes(),
            codes=self._pack_codes(),
            profile=self._pack_profiles(),
            coverage=1.0 - self._unread / eligible if eligible else 1.0,
            nonfinite=self._nonfinite,
            options=self._options,
            seconds=time.perf_counter() - self._started,
        )

    def _pack_hashes(self) -> bytes:
        table = [
            (_as_int(d.exact), _as_int(d.half), _as_int(d.prefix or b""), numel) for _, d, numel in self._hashes
        ]
        head = model_digest(digest.exact for _, digest, _ in self._hashes)
        names = [name for name, *_ in self._hashes]
        return records.pack(b"HLF0", head, np.array(table, records.HASHES), names)

    def _pack_codes(self) -> bytes:
        rows = np.array([row for _, row in self._codes], records.CODES)
        head = np.zeros((), records.CODES_HEAD)
        head["mask"] = self._anchors.mask if self._anchors else 0
        head["position"] = self._position / 2.0**32
        head["anchored"] = self._anchored / 2.0**32
        return records.pack(b"HLF3", head.tobytes(), rows, [name for name, _ in self._codes])

    def _pack_profiles(self) -> bytes:
        table = [(_as_int(digest.exact), profile.fields) for _, digest, profile in self._profiles]
        names, tail = [name for name, *_ in self._profiles], self._histogram.astype("<u8").tobytes()
        return records.pack(b"HLF4", b"", np.array(table, records.PROFILES), names, tail)


class _MatrixPass:
    """Sketch, anchored Gram and profile of one matrix, as far as each applies."""

    def __init__(self, matrix: Matrix, anatomy: Anatomy, anchors: Anchors | None) -> None:
        rows, columns = matrix.rows, matrix.columns
        table = matrix.info.name in anatomy.tables
        self.matrix = matrix
        self.is_embedding = matrix == anatomy.embedding
        self.profile = ProfileAccumulator(rows, columns)
        self._sketch: SketchAccumulator | None = None
        self._grams: list[GramAccumulator] = []
        self._flipped: list[NDArray[np.float32]] | None = None
        if self.is_embedding:
            self._take = min(EMBEDDING_ROWS, max(rows, columns))
            if rows >= columns:
                self._sketch = SketchAccumulator(self._take, columns, embedding_key(columns))
            else:  # stored d x V: its leading columns are token rows, sketched at the end
                self._flipped = []
        elif not table:
            self._take = rows
            self._sketch = SketchAccumulator(rows, columns, matrix_key(rows, columns))
            if anchors is not None:
                self._grams = [
                    GramAccumulator(anchors, rows, columns, side)
                    for side, width in (("columns", columns), ("rows", rows))
                    if width == anchors.width
                ]

    def update(self, block: Block) -> None:
        start, columns = block.start - self.matrix.start, self.matrix.columns
        values = block.values
        self.profile.update(values, start)
        for gram in self._grams:
            gram.update(values, start)
        if self._flipped is not None:
            self._flipped.append(values.reshape(-1, columns)[:, : self._take].copy())
        elif self._sketch is not None and start < self._take * columns:
            self._sketch.update(values[: self._take * columns - start], start)

    def finish_sketch(self) -> Sketch | None:
        if self._flipped is not None:
            tokens = np.ascontiguousarray(np.concatenate(self._flipped).T)
            self._sketch = SketchAccumulator(*tokens.shape, embedding_key(tokens.shape[1]))
            self._sketch.update(tokens.ravel(), 0)
        return self._sketch.finish() if self._sketch else None

    def finish_gram(self) -> NDArray[np.int64]:
        total = np.zeros(PAIRS, np.int64)
        for gram in self._grams:
            unit = gram.finish()
            if unit is not None:
                total += fixed(unit)
        return total


def _code_row(
    matrix: Matrix,
    digest: TensorDigest,
    sketch: Sketch,
    gram: NDArray[np.int64],
    is_embedding: bool,  # noqa: FBT001 - a fact, not a switch
) -> np.void:
    row = np.zeros((), records.CODES)
    row["exact"], row["rows"], row["columns"] = _as_int(digest.exact), matrix.rows, matrix.columns
    row["flags"] = records.IS_EMBEDDING * is_embedding | records.HAS_GRAM * bool(gram.any())
    row["norm"] = sketch.weight_norm
    row["position"] = code(quantise(fixed(sketch.vector)), 1024)
    row["anchored"] = code(fold(gram))
    return row[()]


def _as_int(digest: bytes) -> int:
    return int.from_bytes(digest, "little")


def read_anchors(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[Anchors | None, dict[str, Any]]:
    """Read 64 rows of the embedding: at fixed words where the tokenizer is there, else at fixed ids.

    Returns:
        The anchors, or None without an embedding; and what identifies the choice.
    """
    if anatomy.embedding is None:
        return None, {}
    size = anatomy.vocabulary or 0
    vocabulary = read_vocabulary(checkpoint.root)
    found = find_words(vocabulary, WORDS) if vocabulary else []
    ids = [i if i is not None and i < size else None for i in found]
    kind = "text-64/1"
    if sum(i is not None for i in ids) < MIN_WORDS:
        first, last = (_FIRST_ID, _LAST_ID) if size > _LAST_ID + _FIRST_ID - 1 else (0, size - 1)
        ids, kind = np.linspace(first, last, ANCHORS).astype(int).tolist(), "ids-64/1"
    present = np.array([i is not None for i in ids])
    rows = _token_rows(checkpoint, anatomy.embedding, [i or 0 for i in ids])
    anchors = Anchors.from_rows(kind, rows, present)
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
    return anchors, {"anchors": kind, "ids": digest}


def _token_rows(checkpoint: Checkpoint, table: Matrix, ids: list[int]) -> NDArray[np.float32]:
    """Embedding vectors of tokens, float32 [len(ids), d]."""
    if table.rows >= table.columns:
        return np.concatenate([checkpoint.read_rows(table.info.name, i, i + 1) for i in ids])
    columns = [checkpoint.read_rows(table.info.name, row, row + 1)[0, ids] for row in range(table.rows)]
    return np.stack(columns, axis=1)
