"""In a zoo of trained models every base is found, and no stranger is called a relative.

Every derived model is searched for by all three methods in a store that holds the bases only, then in one
that holds everything but merges, and is compared value by value with its base and with a stranger of the same
architecture, trained on the same data. A pairwise method from the literature judges the same pairs.

Run: python benchmarks/lineage_zoo.py [--cache FOLDER] [--bases N] [--pairs N] [ARCHITECTURE…]
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Gate, Result, main
from threadpoolctl import threadpool_limits
from zoo import CACHE, build_zoo
from zoo_recipes import BASES, REAL, TRAINED
from zoo_reference import awm
from zoo_strangers import conservative_p, strangers, uniform_p

from hilm.lineage.search import METHODS
from hilm.store import Store, diff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from zoo_recipes import Animal
    from zoo_strangers import Stranger

PAIRS = 1000
MERGED_PAIR = ("merge", "fine-tune", "shares-ancestor")
"""What a merge may be called where only one of its parents is looked at."""

Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was found of one derived model.

    Attributes:
        animal: The truth.
        first: The best match among the bases, by method.
        z: Standard score of each base, by method.
        called: Relation to each base, by method.
        pair: Relation to the base by comparing values.
        stranger: The same to a stranger of the architecture.
        nearest: The nearest of all models.
        parents: Weights of the parents that the search named, in all models; None where it named none.
        reference: What AWM says of each base of the architecture.
    """

    animal: Animal
    first: Mapping[str, str]
    z: Mapping[str, Scores]
    called: Mapping[str, Mapping[str, str]]
    pair: str
    stranger: str
    nearest: str
    parents: Mapping[str, float | None] | None
    reference: Mapping[str, float | None]

    def allowed(self) -> tuple[str, ...]:
        """Relations to the base that are true."""
        return MERGED_PAIR if "merge" in self.animal.relations else self.animal.relations


def examine(family: str, zoo: Mapping[Path, Animal], stores: tuple[Path, Path]) -> list[Sighting]:
    """Look at every relative of one family."""
    with threadpool_limits(1, "blas"):
        return [sight(folder, zoo, stores) for folder, a in zoo.items() if a.family == family != a.name]


def sight(folder: Path, zoo: Mapping[Path, Animal], stores: tuple[Path, Path]) -> Sighting:
    animal, (few, everything) = zoo[folder], (Store(path) for path in stores)
    bases = {a.name: path for path, a in zoo.items() if a.change == "base"}
    same = {
        a.name: path
        for path, a in zoo.items()
        if a.change == "base" and a.architecture == animal.architecture
    }
    found = {
        m: few.search(folder, method=m, top_k=len(bases), proof=m == "hybrid")["matches"] for m in METHODS
    }
    other = next((path for name, path in same.items() if name not in animal.bases), None)
    whole = everything.search(folder, top_k=10)["matches"]
    return Sighting(
        animal,
        {m: matches[0]["model"] for m, matches in found.items()},
        {m: {x["model"]: x["z"] for x in matches} for m, matches in found.items()},
        {m: {x["model"]: x["relation"] for x in matches} for m, matches in found.items()},
        diff(folder, bases[animal.family])["relation"],
        diff(folder, other)["relation"] if other else "independent",
        whole[0]["model"],
        named_parents(whole),
        {name: awm(folder, path) for name, path in same.items()},
    )


def named_parents(matches: Iterable[dict[str, Any]]) -> dict[str, float | None] | None:
    """Parents and weights that a search names, if it does."""
    merges = [m["details"]["merge"] for m in matches if "merge" in m["details"]]
    return {p["model"]: p["weight"] for p in merges[0]["parents"]} if merges else None


# Figures


def score(sighting: Sighting, method: str, base: str) -> float | None:
    """What a method says of a pair."""
    if method == "awm":
        return sighting.reference.get(base)
    return sighting.z[method].get(base)


def auc(sightings: Sequence[Sighting], method: str) -> float:
    """Chance that a true base scores above another base of the architecture; what has no score is a draw."""
    related, other = scores_of(sightings, method)
    if not (related and other):
        return 1.0
    x, y = np.array(related)[:, None], np.array(other)
    return float(((x > y) + 0.5 * (x == y)).mean())


def found_without_error(sightings: Sequence[Sighting], method: str) -> float:
    """Share of true pairs above every other pair."""
    related, other = scores_of(sightings, method)
    return float(np.mean(np.array(related) > max(other, default=-np.inf)))


def scores_of(sightings: Sequence[Sighting], method: str) -> tuple[list[float], list[float]]:
    """Scores of true and of other pairs of one architecture, 0 where there is none."""
    related, other = [], []
    for s in sightings:
        for base in s.reference:
            value = score(s, method, base) or 0.0
            (related if base in s.animal.bases else other).append(value)
    return related, other


def top_one(sightings: Sequence[Sighting], method: str) -> float:
    """Share of models whose best match is a base of theirs."""
    if method == "awm":
        best = [max(s.reference, key=lambda b, s=s: s.reference[b] or 0.0) for s in sightings]
    else:
        best = [s.first[method] for s in sightings]
    return float(np.mean([b in s.animal.bases for b, s in zip(best, sightings, strict=True)]))


def false_claims(sightings: Sequence[Sighting]) -> list[str]:
    """Strangers that were called relatives, by a search or a comparison."""
    claims = [
        f"{s.animal.name} {method} {base}: {relation}"
        for s in sightings
        for method, called in s.called.items()
        for base, relation in called.items()
        if relation != "independent" and base not in s.animal.bases
    ]
    return claims + [
        f"{s.animal.name} compared: {s.stranger}" for s in sightings if s.stranger != "independent"
    ]


def parents_right(s: Sighting) -> bool:
    """Whether a search named the parents of a merge and nobody else; a base may stand beside its children.

    Of a merge by layers any model that has those layers may stand for a base.
    """
    named, true = set(s.parents or ()), set(s.animal.parents)
    if len(s.animal.bases) > 1:
        return {name.partition(".")[0] for name in named} == set(s.animal.bases)
    return (
        bool(named) and true - set(s.animal.bases) <= named <= true | set(s.animal.bases) and len(named) > 1
    )


def weight_error(s: Sighting) -> float | None:
    """Largest error of the weights of a linear merge that were stated."""
    if not s.animal.shares or not s.parents or None in s.parents.values():
        return None
    true = dict(zip(s.animal.parents, s.animal.shares, strict=True))
    return max(abs((weight or 0.0) - true.get(parent, 0.0)) for parent, weight in s.parents.items())


HEADER = (
    "change", "models", "top-1 hybrid", "hierarchical", "features", "AWM", "AUC hybrid", "hierarchical",
    "features", "AWM", "TPR at no error", "nearest is family", "search verdict", "comparison verdict",
    "median z", "smallest z",
)  # fmt: skip


def row(change: str, sightings: Sequence[Sighting]) -> tuple[str, ...]:
    """One line of the table."""
    methods = (*METHODS, "awm")
    z = [s.z["hybrid"].get(s.animal.family, 0.0) for s in sightings]
    shares = [
        *(top_one(sightings, m) for m in methods),
        *(auc(sightings, m) for m in methods),
        found_without_error(sightings, "hybrid"),
        nearest_right(sightings),
        right(sightings, searched),
        right(sightings, compared),
    ]
    return (
        change,
        str(len(sightings)),
        *(f"{s:.3f}" for s in shares),
        f"{np.median(z):.1f}",
        f"{min(z):.1f}",
    )


def nearest_right(sightings: Sequence[Sighting]) -> float:
    """Share of models whose nearest of all models belongs to a base of theirs."""
    return float(np.mean([s.nearest.partition(".")[0] in s.animal.bases for s in sightings]))


def searched(s: Sighting) -> str:
    return s.called["hybrid"].get(s.animal.family, "independent")


def compared(s: Sighting) -> str:
    return s.pair


def right(sightings: Sequence[Sighting], say: Callable[[Sighting], str]) -> float:
    """Share of verdicts on the true base of the right class."""
    return float(np.mean([say(s) in s.allowed() for s in sightings]))


def misses(sightings: Sequence[Sighting]) -> list[str]:
    """Every answer that is not the truth, in words."""
    lines = false_claims(sightings)
    for s in sightings:
        name = s.animal.name
        lines += [f"{name}: {m} puts {b} first" for m, b in s.first.items() if b not in s.animal.bases]
        lines += [
            f"{name}: the {by} says {say(s)}, not {' or '.join(s.allowed())}"
            for by, say in (("search", searched), ("comparison", compared))
            if say(s) not in s.allowed()
        ]
        if "merge" in s.animal.relations and not parents_right(s):
            lines.append(
                f"{name}: merged from {', '.join(s.animal.parents)}, named were {s.parents or 'none'}"
            )
    return lines


# Measuring


def observe(zoo: Mapping[Path, Animal], jobs: int = 2) -> list[Sighting]:
    """Index everything, then look at every derived model, two families at a time."""
    with tempfile.TemporaryDirectory() as temporary:
        stores = Path(temporary) / "bases", Path(temporary) / "all"
        # Of several merges of the same parents each might be the merge of the others: none of them is kept.
        kept = [
            [a.change == "base" for a in zoo.values()],
            ["merge" not in a.relations for a in zoo.values()],
        ]
        for store, wanted in zip(stores, kept, strict=True):
            models = [path for path, keep in zip(zoo, wanted, strict=True) if keep]
            failed = Store(store).index(models, jobs=jobs)["failed"]
            assert not failed, failed
        families = dict.fromkeys(a.family for a in zoo.values())
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            return [s for part in pool.map(partial(examine, zoo=zoo, stores=stores), families) for s in part]


def null_gates(pairs: Sequence[Stranger]) -> tuple[Gate, ...]:
    """Whether probabilities are what they say, on pairs without a common ancestor."""
    z = np.array([s.z("sketch") for s in pairs])
    even = uniform_p([s.p("sketch") or 0.0 for s in pairs])
    safe = conservative_p([s.judged.p_value for s in pairs])
    claims = sum(s.judged.relation != "independent" for s in pairs)
    return (
        Gate("p-values of the sketch are uniform, Kolmogorov-Smirnov", even, ">=", 0.01, ""),
        Gate("p-values of verdicts are not too small, Kolmogorov-Smirnov", safe, ">=", 0.01, ""),
        Gate("deviation of the sketch's z, at most", float(z.std()), "<=", 1.05, ""),
        Gate("deviation of the sketch's z, at least", float(z.std()), ">=", 0.97, ""),
        Gate(f"relatives among {len(pairs):,} pairs of strangers", claims, "<=", 0, ""),
    )


def report(sightings: Sequence[Sighting], pairs: Sequence[Stranger]) -> Result:
    """Gates, figures and the table."""
    changes = list(dict.fromkeys(s.animal.change for s in sightings))
    groups = {change: [s for s in sightings if s.animal.change == change] for change in changes}
    merges = [s for s in sightings if "merge" in s.animal.relations]
    behind = [c for c, g in groups.items() if auc(g, "hybrid") < auc(g, "awm")]
    errors = [e for e in map(weight_error, sightings) if e is not None]
    figures = {
        f"{name}, {method}": (figure(sightings, method), "")
        for name, figure in (
            ("top-1 base", top_one),
            ("AUC", auc),
            ("TPR at no false positive", found_without_error),
        )
        for method in (*METHODS, "awm")
    }
    strange = [z for s in sightings for b, z in s.z["hybrid"].items() if b not in s.animal.bases]
    return Result(
        name="lineage_zoo",
        claim="Every relative of a trained model is traced to its base, no stranger is called one",
        command="python benchmarks/lineage_zoo.py",
        gates=(
            Gate("derived models whose base comes first", top_one(sightings, "hybrid"), ">=", 1.0, ""),
            Gate(
                "AUC, base against others of its architecture",
                auc(sightings, "hybrid"),
                ">=",
                0.9999,
                "",
                1.0,
            ),
            Gate("strangers called relatives", len(false_claims(sightings)), "<=", 0, ""),
            Gate(
                "merges whose parents are named",
                np.mean([*map(parents_right, merges)]).item(),
                ">=",
                0.95,
                "",
                0.99,
            ),
            Gate("verdicts of searches of the right class", right(sightings, searched), ">=", 0.95, "", 0.99),
            Gate(
                "verdicts of comparisons of the right class", right(sightings, compared), ">=", 0.95, "", 0.99
            ),
            Gate("kinds of change where AWM has the larger AUC", len(behind), "<=", 0, ""),
            *null_gates(pairs),
        ),
        figures=figures
        | {
            "derived models": (len(sightings), ""),
            "nearest of all models is of the family": (nearest_right(sightings), ""),
            "largest z of a stranger": (max(strange), ""),
            "smallest z of a base": (min(s.z["hybrid"].get(s.animal.family, 0.0) for s in sightings), ""),
            "largest error of a merge's weights": (max(errors, default=0.0), ""),
        },
        table=(HEADER, *(row(change, group) for change, group in groups.items())),
        misses=tuple(misses(sightings)),
    )


def measure() -> Result:
    parser = argparse.ArgumentParser(description="Measure lineage on the zoo.")
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help=", ".join((*TRAINED, REAL)))
    parser.add_argument("--bases", type=int, default=BASES, help="bases of each architecture")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of strangers")
    options = parser.parse_args()
    zoo = build_zoo(options.architectures or (*TRAINED, REAL), options.bases, options.cache)
    with tempfile.TemporaryDirectory() as temporary:
        pairs = strangers(options.pairs, Path(temporary))
    return report(observe(zoo), pairs)


if __name__ == "__main__":
    main(measure)
