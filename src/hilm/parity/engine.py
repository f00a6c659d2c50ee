"""Compare two implementations stage by stage, against the rounding of the number format.

A stage's local error is what it adds when it is fed the reference's own input. Its floor is the local error
of the reference itself, run in the lower precision. The ratio of both is judged: no tolerance is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np

from hilm.errors import UsageError
from hilm.parity.audit import audit
from hilm.parity.metrics import align, measure
from hilm.parity.runners import DTYPES
from hilm.parity.verdict import HIGHER, Gates, ParityReport, Stage, Trial, judge_stage, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hilm.parity.inputs import Item
    from hilm.parity.metrics import Keys, Rows
    from hilm.parity.runners import Runner


@dataclass(slots=True)
class Record:
    """What the reference did with one input, on disk: rows ``[N, D]`` in and out of every stage."""

    folder: Path
    stages: dict[str, Keys] = field(default_factory=dict)

    def keep(self, stage: str, rows: Rows, keys: Keys, given: Rows | None) -> None:
        """Take a stage."""
        self.stages[stage] = keys
        np.save(self._path(stage, "out"), rows)
        if given is not None:
            np.save(self._path(stage, "in"), given)

    def read(self, stage: str, side: str) -> tuple[Rows, Keys] | None:
        """Return rows and keys of one side of a stage, or None where nothing was kept."""
        path = self._path(stage, side)
        return (np.load(path, mmap_mode="r"), self.stages[stage]) if path.exists() else None

    def _path(self, stage: str, side: str) -> Path:
        return self.folder / f"{stage.replace('/', '-')}.{side}.npy"


def try_run(runner: Runner, item: Item, record: Record, mode: str) -> dict[str, Trial]:
    """Run one input and compare every stage that the record has."""
    trials: dict[str, Trial] = {}

    def sink(stage: str, rows: Rows, keys: Keys, given: Rows | None) -> None:
        del given
        skipped = mode == "sub" and "/" not in stage
        kept = None if skipped or (mode == "block" and "/" in stage) else record.read(stage, "out")
        # The error of a block is relative to what the block adds to its input.
        own = record.read(stage, "in") if mode == "block" and stage.startswith("layer.") else None
        if kept is not None:
            trials[stage] = _compare_stage(kept, rows, keys, None if own is None else own[0])

    runner.run(item, sink, None if mode == "free" else record.read, mode)
    return trials


def _compare_stage(kept: tuple[Rows, Keys], rows: Rows, keys: Keys, given: Rows | None) -> Trial:
    reference, known = kept
    theirs, ours, problem = align(known, keys)
    if reference.shape[1] != rows.shape[1]:
        problem = f"width {rows.shape[1]} for {reference.shape[1]}"
    if problem or not len(theirs):
        return Trial(None, 0.0, known, problem or "no tokens to compare")
    true = reference[theirs]
    base = true if given is None or given.shape != reference.shape else true - given[theirs]
    scale = float(np.sqrt(np.sum(np.square(base, dtype=np.float64))))
    return Trial(measure(true, rows[ours]), scale, known[theirs], "")


def compare(
    reference: Runner,
    candidate: Runner,
    items: Sequence[Item],
    *,
    candidate_items: Sequence[Item] | None = None,
    mode: Literal["free", "local", "both"] = "both",
    precision: Literal["float32", "deployed", "both"] = "both",
    require: Literal["both", "compatible", "floor"] | None = None,
    gates: Gates | None = None,
    check_weights: bool = True,
) -> ParityReport:
    """Compare two implementations of one model on inputs.

    Args:
        reference: The trusted side.
        candidate: The side under test.
        items: Inputs.
        candidate_items: The same inputs as the candidate's own preprocessing makes them.
        mode: Let errors accumulate, feed every stage the reference's input, or do both.
        precision: Compare in float32, in the candidate's own format, or in both.
        require: Verdicts that must hold; both where a floor is measured, else compatible.
        gates: What is still the same.
        check_weights: Audit weights, buffers and settings first; a fault there ends the comparison.

    Raises:
        UsageError: There are no inputs, or a side cannot do what is asked.
    """
    if not items:
        raise UsageError("no input to compare on", hint="--input cat=cat.jpg")
    gates, warnings = gates or Gates(), [f"{i.name}: {w}" for i in items for w in i.warnings]
    modes = _modes(reference, candidate, mode, warnings)
    found = audit(reference, candidate) if check_weights else None
    stages, plan = [], list[str]()
    if found is not None:
        warnings += found.warnings
        stages = [Stage("audit", "audit", "input", "", "fail", detail=fault) for fault in found.faults[:20]]
    if not stages or gates.min_sqnr is not None:
        pairs = list(zip(items, candidate_items or items, strict=True))
        stages = [stage for pair in pairs for stage in compare_inputs(*pair)]
        plan = _plan(candidate, precision)
        for low in plan:
            stages += _compare_in(reference, candidate, pairs, low, modes, gates)
    labels = (reference.label, candidate.label)
    return ParityReport(*labels, items, stages, plan, gates, require, found, warnings)


def _modes(reference: Runner, candidate: Runner, mode: str, warnings: list[str]) -> list[str]:
    local = "inject" in candidate.capabilities and "inject" in reference.capabilities
    if mode == "local" and not local:
        raise UsageError(f"{candidate.label} cannot be fed layer by layer", hint="--mode free")
    if mode == "both" and not local:
        warnings.append("one side cannot be fed layer by layer: errors accumulate in every figure")
    return ([] if mode == "local" else ["free"]) + (["block", "sub"] if local and mode != "free" else [])


def _plan(candidate: Runner, precision: str) -> list[str]:
    """Number formats to compare in, the finest first."""
    deployed = "float32" if candidate.dtype == "float64" else candidate.dtype
    if "cast" not in candidate.capabilities or precision == "deployed":
        return [deployed]
    return ["float32"] if precision == "float32" or deployed == "float32" else ["float32", deployed]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What candidates are compared with in one number format.

    Attributes:
        low: That format.
        modes: ``free``, ``block`` (each block is fed) and ``sub`` (each part too).
        records: What the reference did with each input in the higher format.
        floors: What it deviates from that in the lower one, by mode and stage.
    """

    low: str
    modes: Sequence[str]
    records: list[Record]
    floors: list[dict[str, dict[str, Trial]]]


def record_baseline(
    reference: Runner,
    items: Sequence[Item],
    low: str,
    modes: Sequence[str],
    folder: Path,
    through: str | None = None,
) -> Baseline:
    """Run the reference in the higher format and, if it can be cast, in the lower one.

    Args:
        reference: The trusted side; free again at the end.
        items: Inputs.
        low: Format of the candidates.
        modes: As in ``Baseline``.
        folder: Where tensors are kept.
        through: Format its weights are rounded to first.
    """
    castable = "cast" in reference.capabilities
    reference.open(HIGHER[low] if castable else reference.dtype, through)
    records = [Record(folder / str(number)) for number in range(len(items))]
    for record, item in zip(records, items, strict=True):
        record.folder.mkdir()
        reference.run(item, record.keep)
    floors: list[dict[str, dict[str, Trial]]] = [{} for _ in items]
    if castable:
        reference.open(low, through)
        floors = [
            {mode: try_run(reference, item, record, mode) for mode in modes}
            for record, item in zip(records, items, strict=True)
        ]
    reference.close()
    return Baseline(low, modes, records, floors)


def judge_candidate(
    candidate: Runner, items: Sequence[Item], baseline: Baseline, gates: Gates
) -> list[Stage]:
    """Run a candidate and judge every stage of every input."""
    candidate.open(baseline.low)
    stages: list[Stage] = []
    for item, record, floors in zip(items, baseline.records, baseline.floors, strict=True):
        runs = {mode: try_run(candidate, item, record, mode) for mode in baseline.modes}
        stages += _judge_runs(item.name, record, runs, floors, baseline.low, gates)
    candidate.close()
    return stages


def _compare_in(
    reference: Runner,
    candidate: Runner,
    pairs: list[tuple[Item, Item]],
    low: str,
    modes: list[str],
    gates: Gates,
) -> list[Stage]:
    """Compare in one number format; one model is in memory at a time."""
    deep = low == "float32" and candidate.dtype != "float32"
    pairs = [(a.reduced(), b.reduced()) for a, b in pairs] if deep else pairs
    # Weights that the candidate holds in 16 bits are rounded for the reference too: rounding is no defect.
    coarser = DTYPES.index(candidate.dtype) > DTYPES.index(reference.dtype)
    through = candidate.dtype if deep and coarser else None
    with TemporaryDirectory(prefix="hilm-parity-") as folder:
        items = [item for item, _ in pairs]
        baseline = record_baseline(reference, items, low, modes, Path(folder), through)
        return judge_candidate(candidate, [item for _, item in pairs], baseline, gates)


def _judge_runs(
    name: str,
    record: Record,
    runs: dict[str, dict[str, Trial]],
    floors: dict[str, dict[str, Trial]],
    low: str,
    gates: Gates,
) -> list[Stage]:
    """Judge every stage in forward order; free stages behind a local failure have inherited it."""
    stages = []
    for mode, trials in runs.items():
        for tap in record.stages:
            if tap in trials:
                floor = floors.get(mode, {}).get(tap)
                stages.append(judge_stage(name, tap, mode, low, trials[tap], floor, gates))
            elif mode == "free":
                stages.append(Stage(name, tap, "free", low, "not measured", detail="the candidate lacks it"))
    broken = [place(s.stage) for s in stages if s.mode == "local" and s.status == "fail"]
    for stage in stages:
        if stage.mode == "free" and stage.status == "fail" and broken and place(stage.stage) >= min(broken):
            stage.status = "inherited"
    return stages


def compare_inputs(reference: Item, candidate: Item) -> list[Stage]:
    """Compare what both sides made of one file: frame numbers, fitted pictures, pixels."""
    name, both = reference.name, (reference, candidate)
    if reference is candidate:
        return [Stage(name, stage, "input", "", "shared") for stage in ("decode", "preprocess", "pixels")]
    results = []
    indices = [item.facts.get("frame_indices") for item in both]
    shapes = [None if item.frames is None else item.frames.shape for item in both]
    for stage, (a, b) in (("decode", indices), ("preprocess", shapes)):
        status, detail = ("pass", "") if a == b else ("fail", f"{b} for {a}")
        results.append(Stage(name, stage, "input", "", status, detail=detail))
    if shapes[0] is None or shapes[0] != shapes[1]:
        return results
    pixels = [item.pixels.reshape(-1, item.pixels.shape[-1]) for item in both]
    measured = measure(pixels[0], pixels[1])
    status = "pass" if measured.equal else "fail"
    return [*results, Stage(name, "pixels", "input", "float32", status, figures=measured.figures())]
