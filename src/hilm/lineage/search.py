"""Find relatives among catalogued fingerprints: scan, re-rank, judge."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from hilm.errors import UsageError
from hilm.lineage import records
from hilm.lineage.adapter import IS_ADAPTER
from hilm.lineage.gram import ANCHORS, KINDS
from hilm.lineage.profile import Profile, find_codebook, find_lattice
from hilm.lineage.scan import EXHAUSTIVE_ROWS
from hilm.lineage.tables import evenly
from hilm.lineage.tokens import MIN_IDS
from hilm.lineage.verdict import Evidence, Side, Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hilm.lineage.catalog import Catalog
    from hilm.lineage.scan import ScanIndex
    from hilm.lineage.schema import Row

Method = Literal["hierarchical", "features", "hybrid"]
METHODS: tuple[Method, ...] = ("hybrid", "hierarchical", "features")
"""``hierarchical`` compares sign sketches, ``features`` anchored Grams, ``hybrid`` takes the stronger."""

_Side = Literal["a", "b"]

SHORT_LIST = 1000
"""Candidates the scan hands to the exact comparison."""

JUDGED = 32
"""Best of them that are judged by their full evidence."""

MIN_COMMON = 32
"""Anchors that two models must both have for their Grams to be compared."""

HAS_SKETCH, HAS_GRAM = 2, 4
AKIN = 7.0
"""Standard score of two matrix codes from which the matrices are relatives; strangers reached 4.8."""

COMPARED = 512
"""Matrices of a model that are compared one by one, at most."""


class Print:
    """A fingerprint as the catalog keeps it, with its records parsed when needed.

    Args:
        name: What the model is called.
        row: A row of the ``fingerprints`` table.
    """

    def __init__(self, name: str, row: Row) -> None:
        self.name = name
        self.row = row

    @property
    def codes(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """256-bit codes of F1 and F2, uint64 [4] each."""
        words = np.frombuffer(self.row["code"], "<u8")
        return words[:4], words[4:]

    @property
    def kind(self) -> str | None:
        """Anchor kind of F2."""
        number = self.row["flags"] >> 8 & 0xFF
        return KINDS[number - 1] if self.row["flags"] & HAS_GRAM else None

    @cached_property
    def hashes_record(self) -> records.Record:
        """F0, with names."""
        return records.unpack(b"HLF0", self.row["tensor_hashes"], records.HASHES, 32)

    @property
    def hashes(self) -> NDArray[np.void]:
        """F0: one row per tensor."""
        return self.hashes_record.rows

    @property
    def digest(self) -> bytes:
        """Digest of all values: equal for identical models, 32 bytes."""
        return self.hashes_record.head

    @cached_property
    def rounded(self) -> bytes:
        """What all models share that agree after rounding to bfloat16."""
        return np.sort(self.hashes["half"]).tobytes()

    @property
    def is_rounded(self) -> bool:
        """Whether bfloat16 holds the largest tensor exactly."""
        largest = self.hashes[int(self.hashes["parameters"].argmax())]
        made = hashlib.sha256(b"exact-b16|" + int(largest["half"]).to_bytes(8, "little")).digest()[:8]
        return int.from_bytes(made, "little") == int(largest["exact"])

    @property
    def is_adapter(self) -> bool:
        """Whether it is an unmerged adapter."""
        return bool(self.row["flags"] & IS_ADAPTER)

    @cached_property
    def matrices(self) -> NDArray[np.void]:
        """F3: one row per matrix, vocabulary tables left out."""
        rows = self.codes_record.rows
        plain: NDArray[np.void] = rows[rows["flags"] & records.IS_EMBEDDING == 0]
        return plain

    @cached_property
    def codes_record(self) -> records.Record:
        """F3, with names."""
        size = records.CODES_HEAD.itemsize
        return records.unpack(b"HLF3", self.row["tensor_codes"], records.CODES, size)

    @cached_property
    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """F1 [1024], F2 [2016] as float64, and the mask of missing anchors."""
        head = np.frombuffer(self.codes_record.head, records.CODES_HEAD)[0]
        position, anchored = head["position"].astype(np.float64), head["anchored"].astype(np.float64)
        return position, anchored, int(head["mask"])

    @cached_property
    def profile_record(self) -> records.Record:
        """F4, with names."""
        return records.unpack(b"HLF4", self.row["profile"], records.PROFILES)

    def side(self, identical: float = 0.0, rounded: float | None = None) -> Side:
        """This model as one side of a comparison."""
        return replace(self._side, identical=identical, rounded=rounded)

    @cached_property
    def vocabulary(self) -> int | None:
        """Rows of the embedding, or None."""
        tables = self.codes_record.rows[self.codes_record.rows["flags"] & records.IS_EMBEDDING != 0]
        return int(max(tables["rows"].max(), tables["columns"].max())) if len(tables) else None

    @cached_property
    def _side(self) -> Side:
        plain = self.matrices
        shapes = Counter(zip(plain["rows"].tolist(), plain["columns"].tolist(), strict=True))
        sides = Counter(s for r in self.codes_record.rows for s in {int(r["rows"]), int(r["columns"])})
        profiles = self._profiles()
        lattice = find_lattice(profiles)
        codebook = find_codebook(profiles) if lattice is None else None
        return Side(
            name=self.name,
            parameters=int(self.hashes["parameters"].sum()),
            width=max(sides, key=lambda s: (sides[s], s)) if sides else None,
            vocabulary=self.vocabulary,
            shapes=shapes,
            bits=lattice.bits if lattice else codebook and codebook.bit_length() - 1,
            group=lattice.group if lattice else None,
            zeros=_mean(profiles, "zeros"),
            two_of_four=_mean(profiles, "sparse_groups"),
            coverage=self.row["coverage"],
            repeats=_repeats(plain),
        )

    def _profiles(self) -> list[Profile]:
        return [Profile(figures) for figures in self.profile_record.rows["figures"]]


@dataclass(frozen=True, slots=True)
class Match:
    """One relative, or the nearest stranger.

    Attributes:
        model: Row of the ``models`` table.
        print: Its fingerprint.
        evidence: What the verdict rests on.
        verdict: Relation, p-value corrected for the size of the catalog, score.
    """

    model: Row
    print: Print
    evidence: Evidence
    verdict: Verdict


def find_similar(
    catalog: Catalog,
    index: ScanIndex,
    query: Print,
    *,
    method: Method = "hybrid",
    top_k: int = 10,
    without: bytes | None = None,
) -> list[Match]:
    """The nearest models of a catalog, best first, each judged.

    Args:
        catalog: Where the fingerprints are.
        index: Its scan index.
        query: The fingerprint searched for.
        method: Which layers count; see ``METHODS``.
        top_k: How many to return.
        without: ``ref_key`` of a model to leave out: the query itself.

    Raises:
        UsageError: No such method, or ``top_k`` below 1.
    """
    if method not in METHODS or top_k < 1:
        raise UsageError(f"search method {method!r}, {top_k} results", hint=f"methods: {', '.join(METHODS)}")
    near = _shortlist(index, query, method, max(top_k + 1, JUDGED))  # one of them may be left out
    keys = [index.keys[row].tobytes() for row in near]
    rows = {row["fingerprint_key"]: row for row in catalog.rows("fingerprints", {"fingerprint_key": keys})}
    models = catalog.models({"content_key": {row["content_key"] for row in rows.values()}})
    matches = []
    for row in rows.values():
        for model in models:
            if model["content_key"] == row["content_key"] and model["ref_key"] != without:
                other = Print(model["name"], row)
                evidence = replace(weigh(query, other, method), exhaustive=len(index.keys) <= EXHAUSTIVE_ROWS)
                matches.append(Match(model, other, evidence, verdict(evidence, n=len(index.keys))))
    return rank(matches)[:top_k]


def rank(matches: Sequence[Match]) -> list[Match]:
    """Best first: identity before everything, what is established before what is not.

    Established relatives in the same coordinates come before those in others, the most similar first; where
    cosines agree to three digits, those that share more values exactly. Probabilities are all negligible
    there and say no more. What is not established is ordered by certainty.
    """
    return sorted(
        matches,
        key=lambda m: (
            *_nearness(m),
            m.verdict.p_value,
            -m.verdict.z,
            m.model["name"],
            m.model["ref_key"],
        ),
    )


def _nearness(match: Match) -> tuple[int, bool, float, float, float]:
    evidence, judged = match.evidence, match.verdict
    if judged.relation == "independent":
        return 2, False, 0.0, 0.0, 0.0
    statistics = judged.details["statistics"]
    moved = bool(statistics) and min(statistics, key=lambda layer: statistics[layer]["p"]) != "sketch"
    shared, score = evidence.a.identical + evidence.b.identical, judged.score
    return int(judged.relation != "identical"), moved, -round(score, 3), -shared, -score


def _shortlist(index: ScanIndex, query: Print, method: Method, count: int) -> list[int]:
    """Rows of the largest standard scores among all that the scan could not rule out."""
    position, anchored = query.codes
    use_sketch = method != "features" and bool(query.row["flags"] & HAS_SKETCH)
    use_gram = method != "hierarchical" and query.kind is not None
    if not (use_sketch or use_gram):  # only digests can tell; a larger catalog has no index of them
        return list(range(min(len(index.keys), SHORT_LIST)))
    rows = index.candidates(position if use_sketch else None, anchored if use_gram else None, SHORT_LIST)
    forms = (np.asarray(query.row[name], np.int8) for name in ("position_vec", "anchored_vec"))
    cosines = index.cosines(rows, *forms)
    scores = np.where([use_sketch, use_gram], cosines * (32.0, 20.0), -np.inf).max(axis=1, initial=-np.inf)
    return rows[np.argsort(-scores, kind="stable")[:count]].tolist()  # type: ignore[no-any-return]


def weigh(a: Print, b: Print, method: Method = "hybrid") -> Evidence:
    """Evidence from two fingerprints alone."""
    exact, half = _shares(a, b, "exact"), _shares(a, b, "half")
    both = a.row["flags"] & b.row["flags"]
    sketch = gram = None
    if method != "features" and both & HAS_SKETCH:
        sketch = cosine(a.sums[0], b.sums[0])
    if method != "hierarchical" and _have_same_anchors(a, b):
        gram = _gram_cosine(a, b)
    casted = _rounded_side(a, b, exact, half)
    return Evidence(
        a=a.side(exact[0], half[0]),
        b=b.side(exact[1], half[1]),
        sketch=sketch,
        gram=gram,
        cast="BF16" if casted else None,
        casted=casted,
    )


def _have_same_anchors(a: Print, b: Print) -> bool:
    """Whether F2 of both looks at the same tokens, as far as that can be known.

    Fixed ids mean the same tokens in vocabularies of one size, or with the same leading rows and large enough
    for the ids not to move.
    """
    if a.kind is None or a.kind != b.kind:
        return False
    if a.kind != "ids-64/1" or a.vocabulary == b.vocabulary:
        return True
    prefixes = np.intersect1d(a.hashes["prefix"], b.hashes["prefix"])
    return min(a.vocabulary or 0, b.vocabulary or 0) >= MIN_IDS and bool(prefixes.any())


def _gram_cosine(a: Print, b: Print) -> float | None:
    """Cosine of F2 over the anchors that both have; None if these are too few."""
    missing = np.array([a.sums[2] | b.sums[2]], "<u8").view(np.uint8)
    common = np.unpackbits(missing, bitorder="little") == 0
    if common.sum() < MIN_COMMON:
        return None
    first, second = np.triu_indices(ANCHORS, 1)
    pairs = common[first] & common[second]
    return cosine(a.sums[1][pairs], b.sums[1][pairs])


def _shares(a: Print, b: Print, field: str) -> tuple[float, float]:
    """Share of each one's values in tensors whose digest also occurs in the other."""
    shares = []
    for own, other in ((a.hashes, b.hashes), (b.hashes, a.hashes)):
        known = np.isin(own[field], other[field])
        shares.append(float(own["parameters"][known].sum() / max(int(own["parameters"].sum()), 1)))
    return shares[0], shares[1]


def _rounded_side(a: Print, b: Print, exact: tuple[float, float], half: tuple[float, float]) -> _Side | None:
    """Which one is a bfloat16 copy of the other, if one is: equal after rounding, and itself rounded."""
    if min(half) < 1.0 or min(exact) == 1.0:
        return None
    sides: dict[_Side, Print] = {"a": a, "b": b}
    rounded = [side for side, model in sides.items() if model.is_rounded]
    return rounded[0] if len(rounded) == 1 else None


def cosine(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Cosine of two vectors; None if one is zero."""
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else None


def akin(rows: NDArray[np.void], others: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which of the matrices have a relative of their shape among the others: bool [R, others]."""
    shapes = [np.stack([r["rows"], r["columns"]]) for r in (rows, others)]
    found: NDArray[np.bool_] = (shapes[0][:, :, None] == shapes[1][:, None]).all(axis=0)
    first, second = np.nonzero(found)
    distance = np.zeros(len(first), np.uint16)
    for word in range(16):
        distance += np.bitwise_count(rows["position"][first, word] ^ others["position"][second, word])
    found[first, second] = 32 * (1 - distance.astype(np.float64) / 512) >= AKIN
    return found


def _repeats(rows: NDArray[np.void]) -> float:
    """Share of matrices, of at most 512, that have a relative before them."""
    some = rows[evenly(0, len(rows) - 1, min(COMPARED, len(rows)))] if len(rows) else rows
    earlier = np.triu(akin(some, some), 1)
    return float(earlier.any(axis=0).mean()) if len(some) else 0.0


def _mean(profiles: list[Profile], field: str) -> float | None:
    return float(np.mean([p.value(field) for p in profiles])) if profiles else None
