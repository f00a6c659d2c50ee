"""Hidden units of feed-forward blocks, matched in coordinates that hold in any basis of the residual stream.

What a unit does to a few hundred shared tokens stays the same when the residual stream is permuted or rotated
and hidden units change places. Units are matched on one matrix of a block; how well the same match fits the
block's other matrices, compared with all other pairs of blocks, tells relatives from strangers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hilm.lineage.anatomy import Anatomy, Matrix, dissect
from hilm.lineage.assignment import assign, upper_half
from hilm.lineage.tables import evenly, row_runs, spread, token_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hilm.lineage.verdict import Turn
    from hilm.weights.checkpoint import Checkpoint

TOKENS, MIN_TOKENS = 256, 32  # shared tokens that span the token frame
BLOCKS, MIN_BLOCKS = 8, 4  # feed-forward blocks read; fewer leave too few control pairs
UNITS = 64  # hidden units of a block that are matched
FLAT = 1e-3  # directions with eigenvalues below this share of the first are noise
LARGE, MOST = 0.5, 0.9  # a permutation shows as an entry this large in this share of the rows
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class Units:
    """How well the hidden units of two models match.

    Attributes:
        cosine: Of units matched on the first matrix of their blocks, measured on the blocks' other matrices
            without what lies along the first; mean over units and over the blocks that were assigned to each
            other. Near 0 for strangers, 1 for the same weights in any basis.
        z: That cosine less the mean over the control pairs, in standard errors (their standard deviation over
            the square root of the number of assigned blocks).
        controls: Control pairs: the pairs of blocks that were not assigned to each other.
        tokens: How similarly assigned matrices act on the geometry of tokens (unbiased centred kernel
            alignment), without what the embeddings alone account for; mean over the better half.
    """

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


def match_units(
    a: Checkpoint, b: Checkpoint, anatomy_a: Anatomy | None = None, anatomy_b: Anatomy | None = None
) -> Units | None:
    """Match hidden units on the first matrix of a block and measure what the match says about the others.

    Reads the embeddings of 256 tokens and at most 8 feed-forward blocks of each model, and nothing else. Both
    must number their tokens alike, as models of one tokenizer do; widths may differ.

    Args:
        a: An open checkpoint.
        b: The other.
        anatomy_a: ``dissect(a)``, where it is known already.
        anatomy_b: ``dissect(b)``.

    Returns:
        The match; None with fewer than 32 shared tokens, or 4 feed-forward blocks in one of them.
    """
    anatomy_a, anatomy_b = anatomy_a or dissect(a), anatomy_b or dissect(b)
    ids = _shared_tokens(anatomy_a, anatomy_b)
    blocks_a, blocks_b = (spread(_feed_forward(m), BLOCKS) for m in (anatomy_a, anatomy_b))
    if len(ids) < MIN_TOKENS or min(len(blocks_a), len(blocks_b)) < MIN_BLOCKS:
        return None
    frame_a, frame_b = _frame(_embeddings(a, anatomy_a, ids)), _frame(_embeddings(b, anatomy_b, ids))
    left = [_project_block(a, block, frame_a, UNITS) for block in blocks_a]
    matches, held_out = np.zeros((2, len(blocks_a), len(blocks_b)))
    grams_b = []
    for j, block in enumerate(blocks_b):
        right = _project_block(b, block, frame_b, None)
        grams_b += right.grams
        for i, other in enumerate(left):
            matches[i, j], held_out[i, j] = _match_block(other, right)
    cosine, z, controls = _against_controls(held_out, assign(matches))
    grams = np.stack([g for block in left for g in block.grams]) @ np.stack(grams_b).T
    return Units(cosine, z, controls, upper_half(grams[assign(grams)].tolist()) or 0.0)


def find_turn(a: Checkpoint, b: Checkpoint, anatomy_a: Anatomy, anatomy_b: Anatomy) -> Turn | None:
    """Whether the bases of two related models differ by a permutation (with signs) or by a rotation.

    From the polar factor of E_Aᵀ E_B over centred shared tokens: a permutation has one large entry per row.
    None if the widths differ.
    """
    if anatomy_a.width is None or anatomy_a.width != anatomy_b.width:
        return None
    size = min(anatomy_a.vocabulary or 0, anatomy_b.vocabulary or 0)
    ids = evenly(0, size - 1, 4 * anatomy_a.width)
    tokens = [_embeddings(c, m, ids) for c, m in ((a, anatomy_a), (b, anatomy_b))]
    x, y = (t - t.mean(axis=0) for t in tokens)
    u, _, v = np.linalg.svd(x.T @ y)
    return "permutation" if (np.abs(u @ v).max(axis=1) >= LARGE).mean() >= MOST else "rotation"


def _against_controls(
    held_out: NDArray[np.float64], assigned: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> tuple[float, float, int]:
    """Mean over the assigned pairs of blocks, its z among all other pairs, and how many those are."""
    control = np.ones(held_out.shape, bool)
    control[assigned] = False
    mean, error = held_out[assigned].mean(), held_out[control].std(ddof=1) / np.sqrt(len(assigned[0]))
    z = (mean - held_out[control].mean()) / max(error, TINY)
    return float(mean), float(z), int(control.sum())


def _shared_tokens(a: Anatomy, b: Anatomy) -> NDArray[np.int64]:
    """Evenly spaced ids from the frequent half of the shorter vocabulary; none without usable embeddings."""
    if a.embedding is None or b.embedding is None:
        return np.empty(0, np.int64)
    if any(m.width != min(m.embedding.rows, m.embedding.columns) for m in (a, b) if m.embedding):
        return np.empty(0, np.int64)
    size = min(a.vocabulary or 0, b.vocabulary or 0)
    return evenly(size // 16, size // 2, TOKENS)


def _embeddings(checkpoint: Checkpoint, anatomy: Anatomy, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Embeddings of some tokens, float64 [k, d]; none without a table."""
    if anatomy.embedding is None:
        return np.empty((0, 0))
    return np.nan_to_num(token_rows(checkpoint, anatomy.embedding, ids.tolist()).astype(np.float64))


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


def _project(checkpoint: Checkpoint, matrix: Matrix, frame: _Frame) -> NDArray[np.float64]:
    """Hidden units of a matrix in the token frame, [units, k]."""
    tokens, width = frame.axes.shape
    reads_residual = matrix.columns == width and (matrix.rows != width or matrix.info.role.kind != "down")
    out = np.zeros((matrix.rows if reads_residual else matrix.columns, tokens))
    for start, rows in row_runs(checkpoint, matrix):
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
