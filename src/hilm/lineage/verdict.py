"""From measured figures to a relation, its probability and one honest sentence.

The same rules serve evidence from two catalogued fingerprints (digests, sketch, Gram, profiles) and evidence
from reading both checkpoints; what was not measured is None and supports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hilm.lineage.assignment import UNALIGNED
from hilm.lineage.sketch import z1
from hilm.lineage.statistics import (
    GRAM_NULL,
    Level,
    Null,
    adjust,
    critical_cosine,
    joint,
    level,
    normal_tail,
    units_tail,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Relation = Literal[
    "identical", "subset", "dtype-cast", "quantized", "pruned", "fine-tune", "permuted", "resized", "merge",
    "shares-ancestor", "independent",
]  # fmt: skip

Turn = Literal["permutation", "rotation"]

DIGEST_P = 2.0**-64  # chance that a tensor of other values has the same digest
FINE_TUNE_SKETCH = 0.93  # sketch cosine of a fine-tune, at least; less may be a sibling
FINE_TUNE_GRAM = 0.58  # the same of the anchored Gram; both were fitted on models of known descent
PRUNED_SHARE = 0.20  # share of zeros from which a model counts as pruned
PRUNED_EXCESS = 0.10  # how much larger that share must be than the other model's
STRUCTURED_SHARE = 0.99  # share of groups with two zeros of four from which the pattern is 2:4
FULL_COVERAGE = 0.9  # share of decoded parameters below which finding nothing is not conclusive
FROZEN_SHARE = 0.05  # share of equal parameters from which a fine-tune counts as partly frozen
GRAFT_SHARE = 0.05  # share of a model's parameters in matrices of other shapes that makes them a component
MAX_ADAPTER_RANK = 256  # largest rank of an update that may be a merged adapter


@dataclass(frozen=True, slots=True)
class Side:
    """What was found in one of the two checkpoints.

    Attributes:
        name: What to call it in sentences.
        parameters: Values of all its tensors.
        identical: Share of its parameters whose exact values also occur in the other checkpoint.
        rounded: The same after rounding to bfloat16; None when not measured.
        width: Size of the residual stream.
        vocabulary: Rows of the embedding.
        shapes: How many matrices it has of each shape, vocabulary tables left out.
        bits: Bits of a value, as its type states or its lattice or codebook shows; None if continuous.
        group: Values per scale of that lattice, 0 for whole rows; None for a codebook.
        zeros: Share of exact zeros in its matrices.
        two_of_four: Share of aligned groups of four with at least two zeros.
        coverage: Share of its eligible parameters that could be decoded.
        repeats: Share of its matrices that are much like an earlier one; None when not measured.
    """

    name: str
    parameters: int = 0
    identical: float = 0.0
    rounded: float | None = None
    width: int | None = None
    vocabulary: int | None = None
    shapes: Mapping[tuple[int, int], int] = field(default_factory=dict)
    bits: int | None = None
    group: int | None = None
    zeros: float | None = None
    two_of_four: float | None = None
    coverage: float = 1.0
    repeats: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a verdict rests on.

    Attributes:
        a: One checkpoint.
        b: The other.
        sketch: Cosine of the sign sketches (same coordinates); None without a common matrix.
        gram: Cosine of the anchored Grams (any coordinates); None without comparable anchors.
        direct: Mean of the upper half of the cosines of aligned matrices; None when weights were not read.
        units: Mean cosine of matched hidden units, held out.
        units_z: Its distance from the control pairs, in their standard errors.
        controls: How many control pairs there were.
        cast: Narrower type, such as ``BF16``, when all values of one are those of the other rounded to it.
        casted: Which one was cast.
        tokens: Mean similarity of the token geometry of matched matrices, without the embedding's own.
        turn: What leads from one basis to the other.
        rank: Largest rank among the differences of changed matrices; None when not measured.
        exhaustive: Whether nothing was screened away by a coarser search before.
    """

    a: Side
    b: Side
    sketch: float | None = None
    gram: float | None = None
    direct: float | None = None
    units: float | None = None
    units_z: float | None = None
    controls: int = 0
    cast: str | None = None
    casted: Literal["a", "b"] | None = None
    tokens: float | None = None
    turn: Turn | None = None
    rank: int | None = None
    exhaustive: bool = True


@dataclass(frozen=True, slots=True)
class Score:
    """One statistic: which, its cosine, its standard score, its chance between independent models."""

    layer: Literal["sketch", "gram", "units"]
    cosine: float
    z: float
    p: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement.

    Attributes:
        relation: The first class whose rule holds.
        p_value: Chance of such evidence between independent models, corrected for the number of candidates.
        z: Standard score of the strongest statistic; 0 without any.
        score: Its cosine, not below 0; 1 for identical checkpoints.
        level: What the p-value amounts to.
        details: Further relations that hold, the figures, and what the kind of change is.
        sentence: The same for people.
    """

    relation: Relation
    p_value: float
    z: float
    score: float
    level: Level
    details: dict[str, Any]
    sentence: str


def verdict(evidence: Evidence, n: int = 1, null: Null = GRAM_NULL) -> Verdict:
    """Judge how two checkpoints are related.

    Identical, subset and dtype-cast are facts about values: they need no significance, and their p-value is
    at most the 2^-64 by which a digest could err. Every other relation must be established (p ≤ 1e-6).

    Args:
        evidence: The figures.
        n: Candidates among which the pair was found, 1 for two given checkpoints; never the length of a short
            list that was itself selected.
        null: Gram cosines of independent pairs.
    """
    scores = _scores(evidence, null)
    best = min(scores, key=lambda s: s.p, default=Score("sketch", 0.0, 0.0, 1.0))
    proved = frozenset(s.layer for s in scores if level(adjust(s.p * len(scores), n)) == "established")
    holding = [name for name, rule in _RULES if rule(evidence, proved)]
    p = joint([s.p for s in scores])
    p = adjust(min(p, DIGEST_P) if _FACTS.intersection(holding) else p, n)
    relation: Relation = holding[0] if holding else "independent"
    details = _details(evidence, scores, holding)
    if relation == "independent":
        details["smallest_detectable_cosine"] = critical_cosine(n, max(1, len(scores)))
        details["conclusive"] = level(p) == "none" and _covers_enough(evidence)
    score = 1.0 if relation == "identical" else max(0.0, best.cosine)
    sentence = _sentence(relation, evidence, best, p, details)
    return Verdict(relation, p, best.z, score, level(p), details, sentence)


def _covers_enough(e: Evidence) -> bool:
    """Whether finding nothing means something: all was searched and read, in both kinds of coordinates."""
    seen = e.sketch is not None and (e.gram is not None or e.units is not None)
    return e.exhaustive and seen and min(e.a.coverage, e.b.coverage) >= FULL_COVERAGE


def _scores(e: Evidence, null: Null) -> list[Score]:
    scores = []
    if e.sketch is not None:
        scores.append(Score("sketch", e.sketch, z1(e.sketch), normal_tail(z1(e.sketch))))
    if e.gram is not None:
        scores.append(Score("gram", e.gram, null.z(e.gram), null.tail(e.gram)))
    if e.units is not None and e.units_z is not None:
        scores.append(Score("units", e.units, e.units_z, units_tail(e.units_z, e.controls)))
    return scores


def _is_pruned(e: Evidence, proved: frozenset[str]) -> bool:
    low, high = sorted((e.a.zeros or 0.0, e.b.zeros or 0.0))
    return bool(proved) and high >= PRUNED_SHARE and high - low >= PRUNED_EXCESS


def _is_permuted(e: Evidence, proved: frozenset[str]) -> bool:
    direct = e.direct if e.direct is not None else e.sketch or 0.0
    same_width = e.a.width is not None and e.a.width == e.b.width
    return bool(proved & {"units", "gram"}) and same_width and direct < UNALIGNED


def _is_fine_tune(e: Evidence, proved: frozenset[str]) -> bool:
    close = (e.sketch or 0.0) >= FINE_TUNE_SKETCH or (e.gram or 0.0) >= FINE_TUNE_GRAM
    return "sketch" in proved and close and not _changes(e.a, e.b)


_FACTS = frozenset(("identical", "subset", "dtype-cast"))
_RULES: tuple[tuple[Relation, Callable[[Evidence, frozenset[str]], bool]], ...] = (
    # With all values found but unequal counts, one of them repeats parts: that is a subset.
    ("identical", lambda e, _: e.a.identical == e.b.identical == 1 and e.a.parameters == e.b.parameters),
    ("subset", lambda e, _: max(e.a.identical, e.b.identical) == 1),
    ("dtype-cast", lambda e, _: e.cast is not None or e.a.rounded == e.b.rounded == 1),
    ("quantized", lambda e, proved: bool(proved) and (e.a.bits is None) != (e.b.bits is None)),
    ("pruned", _is_pruned),
    ("permuted", _is_permuted),
    ("resized", lambda e, proved: bool(proved and _changes(e.a, e.b))),
    ("fine-tune", _is_fine_tune),
    ("shares-ancestor", lambda _, proved: bool(proved & {"sketch", "units"})),
)


def _changes(a: Side, b: Side) -> list[str]:
    """What differs in shape: a kind of resizing, or the vocabulary, or both."""
    changes = [] if (a.width, a.shapes) == (b.width, b.shapes) else [resizing(a, b)]
    return changes + (["vocabulary"] if a.vocabulary != b.vocabulary else [])


def resizing(a: Side, b: Side) -> str:
    """How shapes differ.

    ``graft``: one has all of the other's matrices and a component of other shapes; ``width`` and ``hidden``:
    other sizes; with equal sizes ``up-scaled`` (layers repeated), ``up-cycled`` (some matrices repeated, as
    experts are) or ``depth``.
    """
    small, large = sorted((a, b), key=lambda s: sum(s.shapes.values()))
    extra = set(large.shapes) - set(small.shapes)
    size = sum(rows * columns * n for (rows, columns), n in large.shapes.items())
    added = sum(rows * columns * large.shapes[rows, columns] for rows, columns in extra)
    contained = all(large.shapes.get(shape, 0) >= n for shape, n in small.shapes.items())
    if contained and added >= GRAFT_SHARE * size > 0:
        return "graft"
    if a.width != b.width:
        return "width"
    if set(a.shapes) != set(b.shapes):
        return "hidden"
    if (large.repeats or 0.0) <= (small.repeats or 0.0):
        return "depth"
    return "up-scaled" if len({large.shapes[k] / small.shapes[k] for k in small.shapes}) == 1 else "up-cycled"


def _details(e: Evidence, scores: list[Score], holding: list[Relation]) -> dict[str, Any]:
    details: dict[str, Any] = {
        "statistics": {s.layer: {"cosine": s.cosine, "z": s.z, "p": s.p} for s in scores},
        "identical_share": {"a": e.a.identical, "b": e.b.identical},
        "also": [r for r in holding[1:] if r != "shares-ancestor"],  # which means none of the others
        "changes": _changes(e.a, e.b),
        "cast": (e.cast or "BF16") if "dtype-cast" in holding else None,
        "direct_cosine": e.direct,
        "token_cosine": e.tokens,
        "turn": e.turn if "permuted" in holding else None,
        "quantization": _quantization(e) if "quantized" in holding else None,
        "pruning": _pruning(e) if "pruned" in holding else None,
        "adapter_rank": _adapter_rank(e) if "fine-tune" in holding else None,
        "partly_frozen": ("fine-tune" in holding and FROZEN_SHARE <= e.a.identical < 1) or None,
    }
    return {key: value for key, value in details.items() if value not in (None, [])}


def _quantization(e: Evidence) -> dict[str, Any]:
    child, parent = (e.b, e.a) if e.a.bits is None else (e.a, e.b)
    group = "row" if child.group == 0 else child.group
    return {"model": child.name, "of": parent.name, "bits": child.bits, "group": group}


def _pruning(e: Evidence) -> dict[str, Any]:
    parent, child = sorted((e.a, e.b), key=lambda s: s.zeros or 0.0)
    pattern = "2:4" if (child.two_of_four or 0.0) >= STRUCTURED_SHARE else "unstructured"
    return {"model": child.name, "of": parent.name, "zeros": child.zeros or 0.0, "pattern": pattern}


def _adapter_rank(e: Evidence) -> int | None:
    """Rank of the update if it is low enough to be that of a merged adapter."""
    few = min(MAX_ADAPTER_RANK, (e.a.width or 0) // 4)
    return e.rank if e.rank is not None and e.rank <= few else None


def _sentence(relation: Relation, e: Evidence, best: Score, p: float, details: dict[str, Any]) -> str:
    if relation == "independent":
        return _no_relation(e, best, p, details)
    a, b, pruned, grid = e.a.name, e.b.name, _pruning(e), _quantization(e)
    part, whole = sorted((e.a, e.b), key=lambda s: (-s.identical, s.parameters))
    share = part.parameters / max(1, whole.parameters)
    near = " or a near relative"  # between a model and its short fine-tune a fingerprint cannot choose
    text = {
        "identical": f"{a} and {b} are identical in 100% of their parameters",
        "subset": f"every value of {part.name} is also in {whole.name}, {share:.0%} of its size",
        "dtype-cast": f"{a} and {b} are the same weights up to rounding to {details.get('cast')}",
        "quantized": f"{grid['model']} is {grid['of']}{near}, quantised to {grid['bits']} bits",
        "pruned": f"{pruned['model']} is {pruned['of']}{near}, with {pruned['zeros']:.0%} set to zero",
        "permuted": f"{a} and {b} are the same weights up to {e.turn or 'permutation or rotation'}",
        "resized": f"{a} and {b} share weights; they differ in {' and '.join(_changes(e.a, e.b))}",
        "fine-tune": f"{b} differs from {a} by training; which came first is not shown",
        "shares-ancestor": f"{b} shares initialisation or an ancestor with {a}",
    }[relation]
    return text if relation in _FACTS else f"{text} (z {best.z:.1f}, p {p:.1e})"


def _no_relation(e: Evidence, best: Score, p: float, details: dict[str, Any]) -> str:
    strength, names = level(p), f"{e.a.name} and {e.b.name}"
    if strength == "none":
        tail = "" if details["conclusive"] else "; not everything could be compared"
        floor = details["smallest_detectable_cosine"]
        return f"no relation found between {names}; a cosine of {floor:.2f} would have been{tail}"
    trace = f"{strength} evidence only (z {best.z:.1f}, p {p:.1e})"
    if best.layer == "gram":
        cause = "common training data can cause this; hilm diff decides"
        return f"{names} have similar token geometry, {trace}; {cause}"
    return f"{trace} that {names} are related; too little to name a relation"
