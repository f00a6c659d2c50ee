"""Two checkpoints, compared value by value.

Every tensor of both is read block by block. Tensors are aligned by name where the values agree with the name,
and by linear assignment on sampled cosines where they do not; significance is measured on values that took no
part in the alignment. Hidden units are matched in coordinates that no permutation or rotation of the residual
stream changes, so relatives are recognised in any basis.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import ml_dtypes
import numpy as np
from numba import njit

from hilm.lineage.anatomy import Anatomy, Matrix, dissect
from hilm.lineage.assignment import UNALIGNED, Aligned, align, assign, decoded, stored_tensors
from hilm.lineage.profile import SAMPLE_ROWS, ProfileAccumulator, find_codebook, find_lattice
from hilm.lineage.sketch import RUNS, SketchAccumulator, matrix_key
from hilm.lineage.statistics import LEVELS, units_tail
from hilm.lineage.verdict import Evidence, Side, Turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from hilm.lineage.profile import Profile
    from hilm.weights.checkpoint import Checkpoint

T = TypeVar("T")

NARROW: dict[str, Any] = {  # what weights are commonly rounded to
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
TOKENS, MIN_TOKENS = 256, 32  # shared tokens that span the token frame
BLOCKS, MIN_BLOCKS = 8, 4  # feed-forward blocks read; fewer leave too few control pairs
UNITS = 64  # hidden units of a block that are matched
FLAT = 1e-3  # eigenvalues and singular values below this share of the first are noise
CORNER = 512  # side of the block whose rank is taken
TINY = float(np.finfo(np.float64).tiny)
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
    direct = _upper_half([p.cosine for p in matrices])
    units = _match_units(a, b, first, second)
    proved = units is not None and units_tail(units.z, units.controls) <= LEVELS[0][0]
    cast, casted = _common_cast(a, b, pairs)
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
        turn=_turn(a, b, first, second) if proved and (direct or 0.0) < UNALIGNED else None,
        cast=cast,
        casted=casted,
        rank=_difference_rank(a, b, [p for p in matrices if not p.identical and p.cosine >= CHANGED]),
    )
    for checkpoint in (a, b):
        checkpoint.check_unchanged()
    return Comparison(
        pairs, _unmatched(a, {p.a for p in pairs}), _unmatched(b, {p.b for p in pairs}), evidence
    )


def _unmatched(checkpoint: Checkpoint, matched: set[str]) -> tuple[str, ...]:
    return tuple(t.name for t in stored_tensors(checkpoint) if t.name not in matched)


def _upper_half(values: Sequence[float]) -> float | None:
    ordered = sorted(values, reverse=True)
    return float(np.mean(ordered[: (len(ordered) + 1) // 2])) if ordered else None


# The table


def _measure(a: Checkpoint, b: Checkpoint, pair: Aligned, sketches: _Sketches) -> TensorPair:
    shorter = pair.shorter
    _, rows, columns = shorter.matrices
    sums = _Sums(rows, columns)
    casts = (
        {(kind, side) for kind in NARROW for side in "ab"} if pair.a.is_weight and pair.b.is_weight else set()
    )
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
    exact = pair.a.is_weight and pair.b.is_weight and max(pair.a.type.bits, pair.b.type.bits) <= 32  # noqa: PLR2004
    identical = same_words or (exact and sums.equal == shorter.numel)
    cosine, distance = (1.0, 0.0) if identical else sums.finish()
    return TensorPair(pair.a.name, pair.b.name, cosine, distance, identical, shorter.numel, frozenset(casts))


def _is_rounded(wide: NDArray[np.float32], narrow: NDArray[np.float32], kind: Any) -> bool:  # noqa: ANN401 - a dtype
    """Whether ``narrow`` is ``wide`` rounded to nearest even; a look at the start decides most cases."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(
            np.array_equal(wide[:n].astype(kind).astype(np.float32), narrow[:n], equal_nan=True)
            for n in (UNITS, len(wide))
        )


class _Sums:
    """Moments of two aligned tensors in float64; the matrices of a stack are centred apart."""

    def __init__(self, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        self._moments = np.zeros(5)  # x·x, y·y, x·y, |x - y|², equal values
        self._column_sums = np.zeros((2, columns))
        self._means = np.zeros(3)  # what centring takes off x·x, y·y and x·y

    @property
    def equal(self) -> int:
        return int(self._moments[4])

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32], start: int) -> None:
        if not len(x):
            return
        _add(x, y, start % self._columns, self._column_sums, self._moments)
        if self._rows > 1 and (start + len(x)) % (self._rows * self._columns) == 0:
            p, q = self._column_sums
            self._means += np.array([p @ p, q @ q, p @ q]) / self._rows
            self._column_sums[:] = 0

    def finish(self) -> tuple[float, float]:
        """Cosine and relative distance; 0 and 1 where values are not finite or all zero on one side."""
        xx, yy, xy = self._moments[:3] - self._means
        norm = max(self._moments[:2])
        scale = np.sqrt(max(xx, 0.0) * max(yy, 0.0))
        cosine = float(xy / scale) if scale > 0 and np.isfinite(scale) else 0.0
        distance = float(np.sqrt(self._moments[3] / norm)) if 0 < norm < np.inf else 1.0
        return max(-1.0, min(1.0, cosine)), distance


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    column: int,
    sums: NDArray[np.float64],
    moments: NDArray[np.float64],
) -> None:
    columns = sums.shape[1]
    xx = yy = xy = dd = 0.0
    equal = 0
    for i in range(len(x)):
        p, q = np.float64(x[i]), np.float64(y[i])
        xx += p * p
        yy += q * q
        xy += p * q
        dd += (p - q) * (p - q)
        equal += (p == q) | (np.isnan(p) & np.isnan(q))
        sums[0, column] += p
        sums[1, column] += q
        column += 1
        if column == columns:
            column = 0
    moments[0] += xx
    moments[1] += yy
    moments[2] += xy
    moments[3] += dd
    moments[4] += equal


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
            self._open = None if _is_fixed(x.reshape(-1, columns)) else both
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


def _is_fixed(rows: NDArray[np.float32]) -> bool:
    """Whether these are rows of sines and cosines, which strangers share."""
    norms = np.linalg.norm(rows, axis=1)
    return bool((abs(norms - np.sqrt(rows.shape[1] / 2)) < FLAT).all() and np.abs(rows).max() < 1 + FLAT)


def _common_cast(
    a: Checkpoint, b: Checkpoint, pairs: Sequence[TensorPair]
) -> tuple[str, Literal["a", "b"]] | tuple[None, None]:
    """The types one whole checkpoint was rounded to, and which one it is; parts may be left as they were."""
    changed = [p for p in pairs if not p.identical]
    if not changed or _unmatched(a, {p.a for p in pairs}) or _unmatched(b, {p.b for p in pairs}):
        return None, None
    sides: tuple[Literal["b"], Literal["a"]] = ("b", "a")
    for side in sides:
        kinds = [min((k for k, s in p.casts if s == side), default=None) for p in changed]
        if None not in kinds:
            return "+".join(sorted({k for k in kinds if k})), side
    return None, None


# Hidden units and tokens


@dataclass(frozen=True, slots=True)
class _Units:
    """Held-out cosine of matched units, its z, the number of control pairs; similarity of token geometry."""

    cosine: float
    z: float
    controls: int
    tokens: float


@dataclass(frozen=True, slots=True)
class _Frame:
    """Coordinates that follow any turn of the residual stream: what tokens look like, and its square root.

    With A the centred unit vectors of k shared tokens, ``axes`` is (A Aᵀ)^(-1/2) A [k, d] and ``root`` is
    (A Aᵀ)^(1/2) [k, k]; directions of almost no variance are dropped.
    """

    axes: NDArray[np.float64]
    root: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Block:
    """A feed-forward block in the token frame: units of each of its matrices, and their token Grams."""

    units: list[NDArray[np.float64]]
    grams: list[NDArray[np.float64]]


def _match_units(a: Checkpoint, b: Checkpoint, anatomy_a: Anatomy, anatomy_b: Anatomy) -> _Units | None:
    """Match hidden units on the first matrix of a block and measure what the match says about the others."""
    ids = _shared_tokens(anatomy_a, anatomy_b)
    blocks_a, blocks_b = (_spread(_feed_forward(m), BLOCKS) for m in (anatomy_a, anatomy_b))
    if len(ids) < MIN_TOKENS or min(len(blocks_a), len(blocks_b)) < MIN_BLOCKS:
        return None
    frame_a, frame_b = _frame(_token_rows(a, anatomy_a, ids)), _frame(_token_rows(b, anatomy_b, ids))
    left = [_project_block(a, block, frame_a, UNITS) for block in blocks_a]
    matches, held_out = np.zeros((2, len(blocks_a), len(blocks_b)))
    grams_b = []
    for j, block in enumerate(blocks_b):
        right = _project_block(b, block, frame_b, None)
        grams_b += right.grams
        for i, other in enumerate(left):
            matches[i, j], held_out[i, j] = _match_block(other, right)
    rows, columns = assign(matches)
    control = np.ones(held_out.shape, bool)
    control[rows, columns] = False
    assigned, spread = held_out[rows, columns].mean(), held_out[control].std(ddof=1)
    z = (assigned - held_out[control].mean()) / max(spread / np.sqrt(len(rows)), TINY)
    grams = np.stack([g for block in left for g in block.grams]) @ np.stack(grams_b).T
    tokens = _upper_half(grams[assign(grams)].tolist())
    return _Units(float(assigned), float(z), int(control.sum()), tokens or 0.0)


def _shared_tokens(a: Anatomy, b: Anatomy) -> NDArray[np.int64]:
    """Evenly spaced ids from the frequent half of the shorter vocabulary; none without usable embeddings."""
    if a.embedding is None or b.embedding is None:
        return np.empty(0, np.int64)
    if any(m.width != min(m.embedding.rows, m.embedding.columns) for m in (a, b) if m.embedding):
        return np.empty(0, np.int64)
    size = min(a.vocabulary or 0, b.vocabulary or 0)
    return np.unique(np.linspace(size // 16, size // 2, TOKENS).astype(np.int64))


def _token_rows(checkpoint: Checkpoint, anatomy: Anatomy, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Embeddings of some tokens, float64 [k, d], whichever way the table is stored."""
    table = anatomy.embedding
    if table is None:
        return np.empty((0, 0))
    if table.rows > table.columns:
        rows = [checkpoint.read_rows(table.info.name, i, i + 1) for i in ids.tolist()]
        return np.nan_to_num(np.concatenate(rows).astype(np.float64))
    columns = [rows[:, ids].astype(np.float64) for _, rows in _row_blocks(checkpoint, table)]
    return np.nan_to_num(np.concatenate(columns).T)


def _frame(embeddings: NDArray[np.float64]) -> _Frame:
    centred = embeddings - embeddings.mean(axis=0)
    tokens = _unit_rows(centred)
    values, vectors = np.linalg.eigh(tokens @ tokens.T)
    kept = values > FLAT * max(values[-1], TINY)
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return _Frame((vectors / roots) @ vectors.T @ tokens, (vectors * roots) @ vectors.T)


def _feed_forward(anatomy: Anatomy) -> list[tuple[Matrix, ...]]:
    """Matrices that share their hidden units, block by block; the gate or first projection comes first.

    Told by role; without roles, matrices h x d and d x h pair up in storage order.
    """
    order = {"gate": 0, "up": 1, "down": 2}
    groups: dict[tuple[str, int | None, int], list[Matrix]] = {}
    plain = [m for m in anatomy.matrices if m.info.matrices[0] == 1 and m.info.name not in anatomy.tables]
    plain = [m for m in plain if anatomy.width in (m.rows, m.columns)]
    for m in plain:
        role = m.info.role
        if role.kind in order and not role.expert:
            stack = m.info.name.partition(f".{role.block}.")[0]
            groups.setdefault((stack, role.block, m.rows * m.columns), []).append(m)
    blocks = [tuple(sorted(g, key=lambda m: order[m.info.role.kind])) for g in groups.values() if len(g) > 1]
    if len(blocks) >= MIN_BLOCKS:
        return blocks
    ups = [m for m in plain if m.columns == anatomy.width != m.rows]
    downs = [m for m in plain if m.rows == anatomy.width != m.columns]
    return [(up, down) for up, down in zip(ups, downs, strict=False) if up.rows == down.columns]


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, evenly spaced, first and last included."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def _row_blocks(checkpoint: Checkpoint, matrix: Matrix) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Rows of one matrix, about 16 MiB at a time, with the number of the first."""
    step, origin = max(1, (1 << 22) // matrix.columns), matrix.index * matrix.rows
    for start in range(0, matrix.rows, step):
        stop = min(start + step, matrix.rows)
        yield start, checkpoint.read_rows(matrix.info.name, origin + start, origin + stop)


def _project(checkpoint: Checkpoint, matrix: Matrix, frame: _Frame) -> NDArray[np.float64]:
    """Hidden units of a matrix in the token frame, [units, k]."""
    tokens, width = frame.axes.shape
    reads_residual = matrix.columns == width and (matrix.rows != width or matrix.info.role.kind != "down")
    out = np.zeros((matrix.rows if reads_residual else matrix.columns, tokens))
    for start, rows in _row_blocks(checkpoint, matrix):
        values = np.nan_to_num(rows.astype(np.float64))
        if reads_residual:
            out[start : start + len(rows)] = values @ frame.axes.T
        else:
            out += values.T @ frame.axes[:, start : start + len(rows)].T
    return out


def _project_block(
    checkpoint: Checkpoint, matrices: tuple[Matrix, ...], frame: _Frame, units: int | None
) -> _Block:
    """All units of a block, or so many evenly spaced ones; column means over all units are removed."""
    block = _Block([], [])
    for matrix in matrices:
        coordinates = _project(checkpoint, matrix, frame)
        block.grams.append(_residual_gram(coordinates @ frame.root, frame.root @ frame.root))
        coordinates -= coordinates.mean(axis=0)
        chosen = np.arange(units or len(coordinates)) * len(coordinates) // (units or len(coordinates))
        block.units.append(coordinates[chosen])
    return block


def _residual_gram(tokens: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Token Gram of a matrix, U-centred, without the part along the embedding's own, as a unit vector."""
    gram, own = _u_centred(tokens.T @ tokens), _u_centred(reference)
    gram -= (gram @ own) / max(float(own @ own), TINY) * own
    gram /= max(float(np.linalg.norm(gram)), TINY)
    return gram


def _u_centred(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unbiased double centring of a Gram matrix without its diagonal; the entries above the diagonal."""
    n = len(gram)
    hollow = gram - np.diag(np.diag(gram))
    means = hollow.sum(axis=0) / (n - 2)
    centred: NDArray[np.float64] = hollow - means - means[:, None] + hollow.sum() / ((n - 1) * (n - 2))
    return centred[np.triu_indices(n, 1)]


def _match_block(left: _Block, right: _Block) -> tuple[float, float]:
    """Mean cosine of the best matches in the first matrices, and what these matches give in the others."""
    first_a, first_b = _unit_rows(left.units[0]), _unit_rows(right.units[0])
    cosines = first_a @ first_b.T
    best = cosines.argmax(axis=1)
    scores = []
    for a, b in zip(left.units[1:], right.units[1:], strict=False):
        x = _unit_rows(_without(a, first_a))
        y = _unit_rows(_without(b[best], first_b[best]))
        scores.append((x * y).sum(axis=1).mean())
    return float(cosines.max(axis=1).mean()), float(np.mean(scores))


def _unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.where(norms > 0, norms, 1.0)
    return scaled


def _without(rows: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row without its component along the unit vector of the same number."""
    along: NDArray[np.float64] = (rows * directions).sum(axis=1, keepdims=True) * directions
    return rows - along


# Kind of change


def _turn(a: Checkpoint, b: Checkpoint, anatomy_a: Anatomy, anatomy_b: Anatomy) -> Turn | None:
    """Whether the bases of two related models differ by a permutation (with signs) or by a rotation.

    From the polar factor of E_Aᵀ E_B over centred shared tokens: a permutation has one large entry per row.
    """
    if anatomy_a.width is None or anatomy_a.width != anatomy_b.width:
        return None
    size = min(anatomy_a.vocabulary or 0, anatomy_b.vocabulary or 0)
    ids = np.unique(np.linspace(0, size - 1, 4 * anatomy_a.width).astype(np.int64))
    tokens = [_token_rows(c, m, ids) for c, m in ((a, anatomy_a), (b, anatomy_b))]
    x, y = (t - t.mean(axis=0) for t in tokens)
    u, _, v = np.linalg.svd(x.T @ y)
    return "permutation" if (np.abs(u @ v).max(axis=1) >= 0.5).mean() >= 0.9 else "rotation"  # noqa: PLR2004


def _difference_rank(a: Checkpoint, b: Checkpoint, changed: Sequence[TensorPair]) -> int | None:
    """Largest rank, on central blocks of 512 x 512, of the differences of up to 8 changed matrices."""
    ranks = []
    for pair in _spread(changed, BLOCKS):
        x, y = (_corner(c, name) for c, name in ((a, pair.a), (b, pair.b)))
        values = np.linalg.svd(np.nan_to_num(x - y), compute_uv=False)
        if x.shape == y.shape and values[0] > 0:
            ranks.append(int((values > FLAT * values[0]).sum()))
    return max(ranks, default=None)


def _corner(checkpoint: Checkpoint, name: str) -> NDArray[np.float64]:
    _, rows, _ = checkpoint.tensors[name].matrices
    start = max(0, (rows - CORNER) // 2)
    return checkpoint.read_rows(name, start, min(start + CORNER, rows))[:, :CORNER].astype(np.float64)


def _side(checkpoint: Checkpoint, anatomy: Anatomy, identical: Mapping[str, int], name: str) -> Side:
    """What one checkpoint looks like; ``identical`` gives the values of each tensor found in the other."""
    stored = stored_tensors(checkpoint)
    plain = [m for m in anatomy.matrices if m.info.name not in anatomy.tables]
    profiles = [_profile(checkpoint, matrix) for matrix in _spread(plain, BLOCKS)]
    lattice, codebook = find_lattice(profiles), find_codebook(profiles)
    return Side(
        name=name,
        parameters=sum(t.numel for t in stored),
        identical=sum(identical.values()) / max(1, sum(t.numel for t in stored)),
        width=anatomy.width,
        vocabulary=anatomy.vocabulary,
        shapes=Counter((m.rows, m.columns) for m in plain),
        bits=lattice.bits if lattice else codebook and codebook.bit_length() - 1,
        group=lattice.group if lattice else None,
        zeros=_mean(profiles, "zeros"),
        two_of_four=_mean(profiles, "sparse_groups"),
    )


def _profile(checkpoint: Checkpoint, matrix: Matrix) -> Profile:
    """Profile from the rows that it looks at, and no others."""
    accumulator = ProfileAccumulator(matrix.rows, matrix.columns)
    for row in np.unique(np.arange(SAMPLE_ROWS) * matrix.rows // SAMPLE_ROWS).tolist():
        position = matrix.index * matrix.rows + row
        values = checkpoint.read_rows(matrix.info.name, position, position + 1)
        accumulator.update(values.reshape(-1), row * matrix.columns)
    return accumulator.finish()


def _mean(profiles: Sequence[Profile], field: str) -> float | None:
    return float(np.mean([p.value(field) for p in profiles])) if profiles else None
