"""Two checkpoints, compared value by value.

Every tensor of both is read block by block. Tensors are aligned by name where the values agree with the name,
and by linear assignment on sampled cosines where they do not; significance is measured on values that took no
part in the alignment.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
from numba import njit

from hilm.lineage.anatomy import dissect
from hilm.lineage.assignment import UNALIGNED, Aligned, align, decoded, stored_tensors, upper_half
from hilm.lineage.profile import find_codebook, find_lattice
from hilm.lineage.sketch import RUNS, SketchAccumulator, matrix_key
from hilm.lineage.sparse import read_values
from hilm.lineage.statistics import LEVELS, units_tail
from hilm.lineage.tables import is_fixed_table, read_corner, read_profile, spread
from hilm.lineage.units import find_turn, match_units
from hilm.lineage.verdict import Evidence, Side

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hilm.lineage.anatomy import Anatomy, Matrix
    from hilm.lineage.profile import Profile
    from hilm.weights.checkpoint import Checkpoint

NARROW: dict[str, Any] = {  # what weights are commonly rounded to
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
GLANCE = 64  # values that show most tensors not to be rounded ones
TENSORS = 64  # tensors looked at for a cast
MATRICES = 8  # matrices profiled, and differences whose rank is taken
FLAT = 1e-3  # singular values below this share of the first are noise
CORNER = 512  # side of the block whose rank is taken
CHANGED = 0.9  # below this direct cosine a difference is no update of the weights


@dataclass(frozen=True, slots=True)
class TensorPair:
    """Two aligned tensors.

    Attributes:
        a: Name in the first checkpoint.
        b: Name in the second.
        cosine: Of the values; column means are removed from matrices. Codes of packed types count as values.
        rel_l2: Norm of the difference over the larger norm, 0 to 2.
        identical: Whether all values compared are equal.
        values: Values compared: all, or those of the common rows of vocabularies of different length.
        casts: Types T and sides ("a" or "b") such that this side is the other one rounded to T.
    """

    a: str
    b: str
    cosine: float
    rel_l2: float
    identical: bool
    values: int
    casts: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found.

    Attributes:
        pairs: Aligned tensors, in the first checkpoint's storage order.
        only_a: Tensors of the first without a partner.
        only_b: Tensors of the second without a partner.
        evidence: The figures for :func:`hilm.lineage.verdict.verdict`.
    """

    pairs: tuple[TensorPair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    evidence: Evidence


def compare(a: Checkpoint, b: Checkpoint) -> Comparison:
    """Compare two open checkpoints in memory bounded by blocks and samples.

    Raises:
        InputError: A file is damaged.
        SourceChanged: A file was modified while it was read.
    """
    first, second = dissect(a), dissect(b)
    sketches = _Sketches(first, second)
    pairs = tuple(_measure(a, b, pair, sketches) for pair in align(a, b, first, second))
    matrices = [p for p in pairs if p.a in sketches.names]
    direct = upper_half([p.cosine for p in matrices])
    units = match_units(a, b, first, second)
    proved = units is not None and units_tail(units.z, units.controls) <= LEVELS[0][0]
    only_a, only_b = _unmatched(a, {p.a for p in pairs}), _unmatched(b, {p.b for p in pairs})
    cast, casted = _common_cast(pairs, only_a + only_b)
    same_name = a.name == b.name
    evidence = Evidence(
        a=_side(a, first, {p.a: p.values for p in pairs if p.identical}, "A" if same_name else a.name),
        b=_side(b, second, {p.b: p.values for p in pairs if p.identical}, "B" if same_name else b.name),
        sketch=sketches.cosine(),
        direct=direct,
        units=units.cosine if units else None,
        units_z=units.z if units else None,
        controls=units.controls if units else 0,
        tokens=units.tokens if units else None,
        turn=find_turn(a, b, first, second) if proved and (direct or 0.0) < UNALIGNED else None,
        cast=cast,
        casted=casted,
        rank=_difference_rank(a, b, [p for p in matrices if not p.identical and p.cosine >= CHANGED]),
    )
    for checkpoint in (a, b):
        checkpoint.check_unchanged()
    return Comparison(pairs, only_a, only_b, evidence)


def _unmatched(checkpoint: Checkpoint, matched: set[str]) -> tuple[str, ...]:
    return tuple(t.name for t in stored_tensors(checkpoint) if t.name not in matched)


# The table


def _measure(a: Checkpoint, b: Checkpoint, pair: Aligned, sketches: _Sketches) -> TensorPair:
    shorter = pair.shorter
    _, rows, columns = shorter.matrices
    sums, weights = _Sums(rows, columns), pair.a.is_weight and pair.b.is_weight
    casts = {(kind, side) for kind in NARROW for side in "ab" if weights}
    same_words = True
    for start, stop in shorter.cuts():
        words = a.words(pair.a.name, start, stop), b.words(pair.b.name, start, stop)
        same = pair.a.dtype == pair.b.dtype and np.array_equal(*words)
        x = decoded(pair.a, words[0])
        y = x if same else decoded(pair.b, words[1])
        same_words &= same
        sums.add(x, y, start)
        casts = {c for c in casts if _is_rounded(*((x, y) if c[1] == "b" else (y, x)), NARROW[c[0]])}
        sketches.add(pair, x, y, start)
    exact = weights and max(pair.a.type.bits, pair.b.type.bits) <= 32
    identical = same_words or (exact and int(sums.moments[4]) == shorter.numel)
    cosine, distance = (1.0, 0.0) if identical else sums.finish()
    return TensorPair(pair.a.name, pair.b.name, cosine, distance, identical, shorter.numel, frozenset(casts))


def _is_rounded(wide: NDArray[np.float32], narrow: NDArray[np.float32], kind: Any) -> bool:  # noqa: ANN401 - a dtype
    """Whether ``narrow`` is ``wide`` rounded to nearest even; a look at the start decides most cases."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(
            np.array_equal(wide[:n].astype(kind).astype(np.float32), narrow[:n], equal_nan=True)
            for n in (GLANCE, len(wide))
        )


class _Sums:
    """Moments of two aligned tensors in float64; the matrices of a stack are centred apart."""

    def __init__(self, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        self.moments = np.zeros(5)  # x·x, y·y, x·y, |x - y|², equal values
        self._column_sums = np.zeros((2, columns))
        self._means = np.zeros(3)  # what centring takes off x·x, y·y and x·y

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32], start: int) -> None:
        if not len(x):
            return
        _add(x, y, start % self._columns, self._column_sums, self.moments)
        if self._rows > 1 and (start + len(x)) % (self._rows * self._columns) == 0:
            p, q = self._column_sums
            self._means += np.array([p @ p, q @ q, p @ q]) / self._rows
            self._column_sums[:] = 0

    def finish(self) -> tuple[float, float]:
        """Cosine and relative distance; 0 and 1 where values are not finite or all zero on one side."""
        xx, yy, xy = self.moments[:3] - self._means
        norm = max(self.moments[:2])
        scale = np.sqrt(max(xx, 0.0) * max(yy, 0.0))
        cosine = float(xy / scale) if scale > 0 and np.isfinite(scale) else 0.0
        distance = float(np.sqrt(self.moments[3] / norm)) if 0 < norm < np.inf else 1.0
        return max(-1.0, min(1.0, cosine)), distance


@njit(cache=True, nogil=True)
def _add(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    column: int,
    sums: NDArray[np.float64],
    moments: NDArray[np.float64],
) -> None:
    xx = yy = xy = dd = equal = 0.0
    for i in range(len(x)):
        p, q = np.float64(x[i]), np.float64(y[i])
        xx, yy, xy, dd = xx + p * p, yy + q * q, xy + p * q, dd + (p - q) * (p - q)
        equal += (p == q) | (np.isnan(p) & np.isnan(q))
        sums[0, column] += p
        sums[1, column] += q
        column = column + 1 if column + 1 < sums.shape[1] else 0
    moments += np.array((xx, yy, xy, dd, equal))


class _Sketches:
    """Sums of the sign sketches of aligned matrices, from values that were not sampled to align them."""

    def __init__(self, a: Anatomy, b: Anatomy) -> None:
        self.names = {m.info.name for m in a.matrices}
        self._others = {m.info.name for m in b.matrices}
        self._sums = np.zeros((2, RUNS))
        self._open: tuple[SketchAccumulator, SketchAccumulator] | None = None

    def add(self, pair: Aligned, x: NDArray[np.float32], y: NDArray[np.float32], start: int) -> None:
        """Take a block; ``x`` and ``y`` are spoilt."""
        if pair.a.name not in self.names or pair.b.name not in self._others or not len(x):
            return
        _, rows, columns = pair.shorter.matrices
        within = start % (rows * columns)
        if within == 0:
            key = matrix_key(rows, columns)
            both = SketchAccumulator(rows, columns, key), SketchAccumulator(rows, columns, key)
            self._open = None if is_fixed_table(x.reshape(-1, columns)) else both
        if self._open is None:
            return
        for sampled in pair.sampled():
            hole = slice(max(sampled.start - start, 0), max(sampled.stop - start, 0))
            x[hole] = y[hole] = 0.0
        for accumulator, values in zip(self._open, (x, y), strict=True):
            accumulator.update(values, within)
        if within + len(x) == rows * columns:
            self._close(self._open)

    def _close(self, accumulators: tuple[SketchAccumulator, SketchAccumulator]) -> None:
        sketches = [accumulator.finish() for accumulator in accumulators]
        if all(s is not None and np.isfinite(s.vector).all() for s in sketches):
            self._sums += [s.vector for s in sketches if s is not None]
        self._open = None

    def cosine(self) -> float | None:
        scale = np.prod(np.linalg.norm(self._sums, axis=1))
        return float(self._sums[0] @ self._sums[1] / scale) if scale > 0 else None


def _common_cast(
    pairs: Sequence[TensorPair], unmatched: Sequence[str]
) -> tuple[str, Literal["a", "b"]] | tuple[None, None]:
    """The types one whole checkpoint was rounded to, and which one it is; parts may be left as they were."""
    changed = [p for p in pairs if not p.identical]
    if unmatched or not changed:
        return None, None
    sides: tuple[Literal["b"], Literal["a"]] = ("b", "a")
    for side in sides:
        kinds = [min((k for k, s in p.casts if s == side), default=None) for p in changed]
        if None not in kinds:
            return "+".join(sorted({k for k in kinds if k})), side
    return None, None


def sampled_cast(a: Checkpoint, b: Checkpoint) -> tuple[str, Literal["a", "b"]] | tuple[None, None]:
    """The type that one checkpoint was rounded to, and which one it is, by values of up to 64 tensors.

    Names, shapes and the middle values of these tensors tell; :func:`compare` reads everything.
    """
    shapes = [{t.name: t.shape for t in stored_tensors(c) if t.is_weight} for c in (a, b)]
    if shapes[0] != shapes[1]:
        return None, None
    pairs = []
    for name in spread(sorted(shapes[0]), TENSORS):
        x, y = (read_values(c, [name]) for c in (a, b))
        kinds = {
            (k, s)
            for k, t in NARROW.items()
            for s, w, n in (("b", x, y), ("a", y, x))
            if _is_rounded(w, n, t)
        }
        same = np.array_equal(x, y)
        if not kinds and not same:
            return None, None  # read no more of what may be far away
        pairs.append(TensorPair(name, name, 1.0, 0.0, same, len(x), frozenset(kinds)))
    return _common_cast(pairs, ())


# Kind of change


def _difference_rank(a: Checkpoint, b: Checkpoint, changed: Sequence[TensorPair]) -> int | None:
    """Largest rank, on central blocks of 512 x 512, of the differences of up to 8 changed matrices."""
    ranks = []
    for pair in spread(changed, MATRICES):
        x, y = (read_corner(c, name, CORNER) for c, name in ((a, pair.a), (b, pair.b)))
        values = np.linalg.svd(np.nan_to_num(x - y), compute_uv=False)
        if x.shape == y.shape and values[0] > 0:
            ranks.append(int((values > FLAT * values[0]).sum()))
    return max(ranks, default=None)


def _side(checkpoint: Checkpoint, anatomy: Anatomy, identical: Mapping[str, int], name: str) -> Side:
    """What one checkpoint looks like; ``identical`` gives the values of each tensor found in the other."""
    stored = stored_tensors(checkpoint)
    plain = [m for m in anatomy.matrices if m.info.name not in anatomy.tables]
    profiles = [read_profile(checkpoint, matrix) for matrix in spread(plain, MATRICES)]
    lattice, codebook = find_lattice(profiles), find_codebook(profiles)
    bits = _stated_bits(plain) or (lattice.bits if lattice else codebook and codebook.bit_length() - 1)
    return Side(
        name=name,
        parameters=sum(t.numel for t in stored),
        identical=sum(identical.values()) / max(1, sum(t.numel for t in stored)),
        width=anatomy.width,
        vocabulary=anatomy.vocabulary,
        shapes=Counter((m.rows, m.columns) for m in plain),
        bits=bits,
        group=lattice.group if lattice and lattice.bits == bits else None,
        zeros=_mean(profiles, "zeros"),
        two_of_four=_mean(profiles, "sparse_groups"),
        coverage=anatomy.coverage,
    )


def _stated_bits(matrices: Sequence[Matrix]) -> int | None:
    """Bits that the types of most matrices state, if any: what values show of these is an estimate."""
    stated = Counter(m.info.stated_bits for m in matrices)
    return max(stated, key=stated.__getitem__, default=None)


def _mean(profiles: Sequence[Profile], field: str) -> float | None:
    return float(np.mean([p.value(field) for p in profiles])) if profiles else None
