"""Compare two implementations stage by stage, against the rounding of the number format.

A stage's local error is what it adds when it is fed the reference's own input. Its floor is the local error of
the reference itself, run in the lower precision; the ratio of both is what is judged, so no tolerance is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hilm.errors import UsageError
from hilm.parity.audit import Audit, audit
from hilm.parity.metrics import Measured, align, judge, measure, worst_tokens
from hilm.parity.runners import DTYPES

if TYPE_CHECKING:
    from hilm.parity.inputs import Item
    from hilm.parity.metrics import Keys, Rows
    from hilm.parity.runners import Runner

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff of each number format."""

HIGHER = {"float32": "float64", "float16": "float32", "bfloat16": "float32"}
"""Format the reference runs in to judge a lower one."""

MODES = {"free": None, "block": "block", "sub": "sub"}


@dataclass(frozen=True, slots=True)
class Gates:
    """What is still called the same.

    Attributes:
        k: Largest ratio of a local error to its floor; ``k_token`` that of the worst tokens.
        k_token: See ``k``.
        k_free: Largest ratio where errors accumulate.
        layer: Hidden state the documented rule is applied to, as an index of ``hidden_states``.
        threshold: Cosine every token there must exceed.
        min_sqnr: For lossy candidates: dB the final stage must reach instead of the floor.
    """

    k: float = 1.5
    k_token: float = 2.0
    k_free: float = 3.0
    layer: int = -2
    threshold: float = 0.99
    min_sqnr: float | None = None


@dataclass(slots=True)
class Stage:
    """One stage of one input in one mode and precision; ``status`` is what became of it.

    ``ratio`` is error over floor, ``ratio_token`` that of the worst tokens; None where no floor was measured.
    """

    input: str
    stage: str
    mode: str
    precision: str
    status: str
    bar: float | None = None
    error: float | None = None
    floor: float | None = None
    ratio: float | None = None
    ratio_token: float | None = None
    detail: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    worst: list[dict[str, Any]] = field(default_factory=list)
    trial: Trial | None = field(default=None, repr=False)

    def document(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "trial"}


@dataclass(slots=True)
class ParityReport:
    """What a comparison found; ``document`` is its JSON."""

    reference: str
    candidate: str
    verdict: str
    compatible: bool
    at_precision_floor: bool | None
    first_divergence: dict[str, Any] | None
    stages: list[Stage]
    floor: dict[str, Any]
    audit: Audit | None
    items: Sequence[Item]
    warnings: list[str]

    def document(self) -> dict[str, Any]:
        """Everything but the pictures, in a stable order."""
        floor = self.at_precision_floor
        return {
            "schema": 1,
            "reference": self.reference,
            "candidate": self.candidate,
            "verdict": self.verdict,
            "verdicts": {
                "compatible": self.compatible,
                "at_precision_floor": "not measured" if floor is None else floor,
            },
            "first_divergence": self.first_divergence,
            "inputs": {item.name: {"path": item.path, **item.facts} for item in self.items},
            "stages": [stage.document() for stage in self.stages],
            "floor": self.floor,
            "audit": None if self.audit is None else asdict(self.audit),
            "warnings": self.warnings,
        }


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


@dataclass(frozen=True, slots=True)
class Trial:
    """How one run differs from the record at one stage.

    Attributes:
        measured: Figures; None where tokens do not align.
        scale: Norm that errors are relative to: of a block's own update, else of the reference.
        keys: Keys of the rows that were measured.
        problem: What is wrong with the tokens.
    """

    measured: Measured | None
    scale: float
    keys: Keys
    problem: str

    @property
    def error(self) -> float:
        """Relative error; infinite where values are not finite."""
        error = self.measured.error if self.measured else math.inf
        return error / self.scale if self.scale else (math.inf if error else 0.0)

    @property
    def token_error(self) -> float:
        """Largest error of a token, relative to the scale of a mean one."""
        if self.measured is None or not self.scale:
            return self.error
        return float(self.measured.errors.max()) * math.sqrt(len(self.measured.errors)) / self.scale


def try_run(runner: Runner, item: Item, record: Record, mode: str) -> dict[str, Trial]:
    """Run one input and compare every stage that the record has."""
    trials: dict[str, Trial] = {}

    def sink(stage: str, rows: Rows, keys: Keys, given: Rows | None) -> None:
        del given
        skipped = mode == "sub" and "/" not in stage
        kept = None if skipped or (mode == "block" and "/" in stage) else record.read(stage, "out")
        if kept is not None:
            trials[stage] = _compare_stage(kept, rows, keys, _update_of(record, stage, mode))

    runner.run(item, sink, None if mode == "free" else record.read, mode)
    return trials


def _update_of(record: Record, stage: str, mode: str) -> Rows | None:
    """The input of a block, whose error is relative to what the block adds to it."""
    is_block = mode == "block" and stage.startswith("layer.")
    given = record.read(stage, "in") if is_block else None
    return None if given is None else given[0]


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
    lossy = gates.min_sqnr is not None
    if found is not None:
        warnings += found.warnings
        if found.faults and not lossy:
            stage = {"stage": "audit", "detail": found.faults[0]}
            return ParityReport(
                reference.label, candidate.label, "fail", compatible=False, at_precision_floor=False,
                first_divergence=stage, stages=[], floor={}, audit=found, items=items, warnings=warnings,
            )  # fmt: skip
    pairs = list(zip(items, candidate_items or items, strict=True))
    stages = [stage for pair in pairs for stage in compare_inputs(*pair)]
    plan = _plan(reference, candidate, precision)
    for low in plan:
        stages += _compare_in(reference, candidate, pairs, low, modes, gates)
    return _conclude(reference, candidate, items, stages, plan, gates, require, found, warnings)


def _modes(reference: Runner, candidate: Runner, mode: str, warnings: list[str]) -> list[str]:
    local = "inject" in candidate.capabilities and "inject" in reference.capabilities
    if mode == "local" and not local:
        raise UsageError(f"{candidate.label} cannot be fed layer by layer", hint="--mode free")
    if mode == "both" and not local:
        warnings.append("one side cannot be fed layer by layer: errors accumulate in every figure")
    return ([] if mode == "local" else ["free"]) + (["block", "sub"] if local and mode != "free" else [])


def _plan(reference: Runner, candidate: Runner, precision: str) -> list[str]:
    """Number formats to compare in, the finest first."""
    deployed = "float32" if candidate.dtype == "float64" else candidate.dtype
    if "cast" not in candidate.capabilities or precision == "deployed":
        return [deployed]
    del reference
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
        unknown = [stage for stage in record.stages if stage not in trials]
        for stage in sorted(record.stages, key=place):
            if stage in trials:
                floor = floors.get(mode, {}).get(stage)
                stages.append(_judge_stage(name, stage, mode, low, trials[stage], floor, gates))
            elif mode == "free" and stage in unknown:
                stages.append(Stage(name, stage, "free", low, "not measured", detail="the candidate lacks it"))
    broken = [place(s.stage) for s in stages if s.mode == "local" and s.status == "fail"]
    for stage in stages:
        if stage.mode == "free" and stage.status == "fail" and broken and place(stage.stage) >= min(broken):
            stage.status = "inherited"
    return stages


def _judge_stage(
    name: str, stage: str, mode: str, low: str, trial: Trial, floor: Trial | None, gates: Gates
) -> Stage:
    bar = gates.k_free if mode == "free" else gates.k
    result = Stage(name, stage, "free" if mode == "free" else "local", low, "measured", bar)
    if trial.measured is None:
        result.status, result.detail = "fail", trial.problem
        return result
    result.error, result.figures = trial.error, trial.measured.figures()
    result.trial, result.worst = trial, worst_tokens(trial.measured, trial.keys)
    if trial.measured.nonfinite:
        result.status, result.detail = "fail", judge(trial.measured)
    elif floor is not None:
        least = UNIT[low] / 8
        result.floor = max(floor.error, least)
        result.ratio = trial.error / result.floor
        result.ratio_token = trial.token_error / max(floor.token_error, least)
        token_bar = math.inf if mode == "free" else gates.k_token
        good = result.ratio <= bar and result.ratio_token <= token_bar
        result.status = "pass" if good else "fail"
    return result


def place(stage: str) -> tuple[int, int, int]:
    """Sort stages in forward order: a layer's parts come before the layer."""
    fixed = {"decode": 0, "preprocess": 1, "pixels": 2, "embed": 3, "post": 5, "head": 6}
    if stage in fixed:
        return fixed[stage], 0, 0
    layer, _, part = stage.removeprefix("layer.").partition("/")
    parts = ("norm1", "attn", "norm2", "mlp")
    return 4, int(layer), parts.index(part) if part in parts else (9 if not part else 5)


def compare_inputs(reference: Item, candidate: Item) -> list[Stage]:
    """Compare what both sides made of one file: frame numbers, fitted pictures, pixels."""
    name, both = reference.name, (reference, candidate)
    if reference is candidate:
        return [Stage(name, stage, "input", "", "shared") for stage in ("decode", "preprocess", "pixels")]
    results = []
    indices = [item.facts.get("frame_indices") for item in both]
    shapes = [None if item.frames is None else item.frames.shape for item in both]
    for stage, (a, b) in (("decode", indices), ("preprocess", shapes)):
        results.append(
            Stage(name, stage, "input", "", "pass" if a == b else "fail", detail="" if a == b else f"{b} for {a}")
        )
    if shapes[0] is None or shapes[0] != shapes[1]:
        return results
    pixels = [item.pixels.reshape(-1, item.pixels.shape[-1]) for item in both]
    measured = measure(pixels[0], pixels[1])
    status = "pass" if measured.equal else "fail"
    return [*results, Stage(name, "pixels", "input", "float32", status, figures=measured.figures())]


def _conclude(
    reference: Runner,
    candidate: Runner,
    items: Sequence[Item],
    stages: list[Stage],
    plan: list[str],
    gates: Gates,
    require: str | None,
    found: Audit | None,
    warnings: list[str],
) -> ParityReport:
    measured = any(stage.ratio is not None and stage.mode == "local" for stage in stages)
    failed = any(stage.status == "fail" for stage in stages)
    floor = (not failed) if measured else (False if failed else None)
    compatible = all(_is_compatible(item.name, stages, plan[-1], gates) for item in items)
    if gates.min_sqnr is not None:
        good = all(_reaches(item.name, stages, plan[-1], gates.min_sqnr) for item in items)
    else:
        needed = {"both": (compatible, floor), "compatible": (compatible,), "floor": (floor,)}
        good = all(needed[require or ("both" if floor is not None else "compatible")])
    floors = {
        low: {
            "reference": HIGHER[low],
            "largest": max((s.floor for s in stages if s.precision == low and s.floor), default=None),
        }
        for low in plan
    }
    return ParityReport(
        reference.label,
        candidate.label,
        "pass" if good else "fail",
        compatible,
        floor,
        first_divergence(stages, gates),
        stages,
        floors if measured else {},
        found,
        items,
        warnings,
    )


def _is_compatible(name: str, stages: list[Stage], low: str, gates: Gates) -> bool:
    """Apply the documented rule to the hidden state of one input, or to the last stage both sides have."""
    ours = [s for s in stages if s.input == name and s.precision == low and s.mode != "input"]
    ours = [s for s in ours if s.mode == "free"] or ours
    layers = [s for s in ours if s.stage == "embed" or (s.stage.startswith("layer.") and "/" not in s.stage)]
    wanted = layers[gates.layer] if -len(layers) <= gates.layer < len(layers) else None
    usable = [s for s in ours if s.figures or s.status == "fail"]
    stage = wanted if wanted in usable else (usable[-1] if usable else None)
    return stage is not None and bool(stage.figures) and not why_not(stage.figures, gates.threshold)


def why_not(figures: dict[str, Any], threshold: float) -> str:
    """Apply :func:`hilm.parity.metrics.judge` to stored figures."""
    empty = np.empty(0)
    return judge(Measured(**figures, errors=empty, cosines=empty), threshold=threshold)


def _reaches(name: str, stages: list[Stage], low: str, min_sqnr: float) -> bool:
    ours = [s for s in stages if s.input == name and s.precision == low and s.mode == "free" and s.figures]
    return bool(ours) and float(max(ours, key=lambda s: place(s.stage)).figures["sqnr_db"]) >= min_sqnr


def first_divergence(stages: list[Stage], gates: Gates) -> dict[str, Any] | None:
    """Name the first stage in forward order that fails by itself, in the finest precision that shows it."""
    failing = [s for s in stages if s.status == "fail"]
    if not failing and not any(s.ratio is not None for s in stages):
        failing = [s for s in stages if s.mode == "free" and s.figures and why_not(s.figures, gates.threshold)]
    if not failing:
        return None
    order = {"input": 0, "local": 1, "free": 2}
    first = min(failing, key=lambda s: (order[s.mode], place(s.stage)))
    first = min((s for s in failing if s.mode == first.mode), key=lambda s: place(s.stage))
    layer, _, sub = first.stage.partition("/")
    parts = any(s.stage.startswith(f"{first.stage}/") and s.mode == "local" for s in stages)
    inherited = [s.stage for s in stages if s.status == "inherited" and "/" not in s.stage]
    return {
        "input": first.input,
        "stage": layer,
        "layer": int(layer.removeprefix("layer.")) if layer.startswith("layer.") else None,
        "sub": sub or ("wiring" if parts and first.mode == "local" else None),
        "mode": first.mode,
        "precision": first.precision,
        "ratio": first.ratio,
        "ratio_token": first.ratio_token,
        "bar": first.bar,
        "token": first.worst[0]["token"] if first.worst else None,
        "detail": first.detail,
        "inherited": list(dict.fromkeys(inherited)),
    }
