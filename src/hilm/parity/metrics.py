"""Figures about two aligned tables of tokens, in float64 and row by row: numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Keys = NDArray[np.int32]
    Rows = NDArray[np.floating[Any]]

CHUNK_VALUES = 1 << 20
WORST = 8
"""Tokens that a report names."""

THRESHOLD = 0.99
NORM_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Measured:
    """How a candidate differs from its reference, both ``[N, D]``.

    Attributes:
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        rel_l2: ``||c - r|| / ||r||``.
        cosine_min: Smallest cosine of a token; also ``cosine_mean`` and ``cosine_max``.
        norm_ratio: ``||c|| / ||r||``.
        sqnr_db: ``10 log10(||r||² / ||c - r||²)``; infinite where they are equal.
        nonfinite: NaN and infinite values of both sides.
        first_nonfinite: The first row with one.
        equal: Whether all values are equal.
        errors: ``[N]`` L2 norm of each token's difference.
        cosines: ``[N]`` cosine of each token.
    """

    max_abs: float
    mean_abs: float
    rel_l2: float
    cosine_min: float
    cosine_mean: float
    cosine_max: float
    norm_ratio: float
    sqnr_db: float
    nonfinite: int
    first_nonfinite: int | None
    equal: bool
    errors: NDArray[np.float64]
    cosines: NDArray[np.float64]

    @property
    def error(self) -> float:
        """L2 norm of the whole difference; infinite where a value is not finite."""
        return math.inf if self.nonfinite else float(np.sqrt(np.sum(self.errors**2)))

    def figures(self) -> dict[str, Any]:
        """The scalar figures by name."""
        names = [name for name in self.__slots__ if name not in {"errors", "cosines"}]
        return {name: getattr(self, name) for name in names}


def measure(reference: Rows, candidate: Rows) -> Measured:
    """Compare two tables of equal shape ``[N, D]``; the result does not depend on how rows are cut.

    Cosines are clipped to [-1, 1]; that of two zero rows is 1, of one zero row 0.

    Raises:
        InputError: The tables are empty or their shapes differ.
    """
    if reference.shape != candidate.shape or not reference.size:
        raise InputError(f"tokens of shape {candidate.shape} do not match {reference.shape}")
    step = max(1, CHUNK_VALUES // reference.shape[1])
    parts = [
        _measure_rows(reference[start : start + step], candidate[start : start + step])
        for start in range(0, len(reference), step)
    ]
    biggest, absolute, squared, dots, left, right, bad = map(np.concatenate, zip(*parts, strict=True))
    norms = np.sqrt(left * right)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosines = np.where(norms > 0, np.clip(dots / norms, -1, 1), (left == right).astype(float))
        total, kept = float(np.sum(left)), float(np.sum(squared))
    return Measured(
        max_abs=float(biggest.max()),
        mean_abs=float(np.sum(absolute)) / reference.size,
        rel_l2=math.sqrt(kept / total) if total else (math.inf if kept else 0.0),
        cosine_min=float(cosines.min()),
        cosine_mean=float(np.sum(cosines)) / len(cosines),
        cosine_max=float(cosines.max()),
        norm_ratio=math.sqrt(float(np.sum(right)) / total) if total else (math.inf if kept else 1.0),
        sqnr_db=10 * math.log10(total / kept) if kept and total else (-math.inf if kept else math.inf),
        nonfinite=int(bad.sum()),
        first_nonfinite=int(np.flatnonzero(bad)[0]) if bad.any() else None,
        equal=not biggest.any() and not bad.any(),
        errors=np.sqrt(squared),
        cosines=cosines,
    )


def _measure_rows(reference: Rows, candidate: Rows) -> tuple[NDArray[Any], ...]:
    """Figures of each row; rows with values that are not finite count as zero, and are counted."""
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    bad = np.sum(~np.isfinite(r), axis=1) + np.sum(~np.isfinite(c), axis=1)
    r[bad > 0], c[bad > 0] = 0, 0
    difference = np.abs(c - r)
    products = (difference * difference, r * c, r * r, c * c)
    sums = (np.sum(product, axis=1) for product in products)
    return difference.max(axis=1), np.sum(difference, axis=1), *sums, bad


def align(reference: Keys, candidate: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Join two tables of token keys (sample, t, y, x), ``[N, 4]``; rows of a negative sample are padding.

    Returns:
        Rows of either side that belong together, and what is wrong, if anything: missing, extra or duplicate
        keys with their number and the first of them.
    """
    rows = [np.flatnonzero(keys[:, 0] >= 0) for keys in (reference, candidate)]
    left, right = (_whole(keys[kept]) for keys, kept in zip((reference, candidate), rows, strict=True))
    problems = []
    for name, keys in (("reference", left), ("candidate", right)):
        unique, counts = np.unique(keys, return_counts=True)
        if len(unique) < len(keys):
            twice = unique[counts > 1]
            problems.append(f"{len(twice)} duplicate tokens in the {name}, the first {_show(twice)}")
    for word, keys in (("missing", np.setdiff1d(left, right)), ("extra", np.setdiff1d(right, left))):
        if len(keys):
            problems.append(f"{len(keys)} {word} tokens, the first {_show(keys)}")
    _, first, second = np.intersect1d(left, right, return_indices=True)
    return rows[0][first], rows[1][second], "; ".join(problems)


def _whole(keys: Keys) -> NDArray[Any]:
    """View each key as one value that sorts like it."""
    fields = [(name, np.int32) for name in ("sample", "t", "y", "x")]
    return np.ascontiguousarray(keys, np.int32).view(fields).reshape(-1)


def _show(keys: NDArray[Any]) -> str:
    return f"(sample, t, y, x) = {tuple(map(int, keys[0]))}"


def judge(measured: Measured, *, threshold: float = THRESHOLD, norm_tolerance: float = NORM_TOLERANCE) -> str:
    """Apply the documented rule; returns why two sides do not match, or an empty text."""
    if measured.nonfinite:
        return f"{measured.nonfinite} NaN or infinite values, first at token {measured.first_nonfinite}"
    if not measured.cosine_min > threshold:
        return f"min cosine <= {threshold:g}"
    if not abs(measured.norm_ratio - 1) <= norm_tolerance:
        return f"norm ratio {measured.norm_ratio:.4g} is not within {norm_tolerance:g} of 1"
    return ""


def worst_tokens(measured: Measured, keys: Keys) -> list[dict[str, Any]]:
    """The tokens that differ most, the worst first: key, error and cosine."""
    order = np.argsort(-measured.errors, kind="stable")[:WORST]
    return [
        {"token": keys[i].tolist(), "error": float(measured.errors[i]), "cosine": float(measured.cosines[i])}
        for i in order.tolist()
    ]
