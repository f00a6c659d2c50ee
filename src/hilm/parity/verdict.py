"""What measured differences mean: gates, verdicts, and the first stage where two sides part."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hilm.parity.metrics import Measured, judge, worst_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hilm.parity.audit import Audit
    from hilm.parity.inputs import Item
    from hilm.parity.metrics import Keys

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff of each number format."""

HIGHER = {"float32": "float64", "float16": "float32", "bfloat16": "float32"}
"""Format the reference runs in to judge a lower one."""


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
    """What a comparison found; ``document`` is its JSON.

    Attributes:
        reference: Label of the trusted side; ``candidate`` that of the other.
        candidate: See ``reference``.
        items: Inputs.
        stages: Every stage of every input, in every mode and precision.
        plan: Number formats compared in, the candidate's own last; none where the audit ended the comparison.
        gates: What is still the same.
        require: Verdicts that must hold; both where a floor was measured, else compatible.
        audit: What both sides have in common, if that was looked at.
        warnings: What a careful reader should know.
    """

    reference: str
    candidate: str
    items: Sequence[Item]
    stages: list[Stage]
    plan: list[str]
    gates: Gates
    require: str | None
    audit: Audit | None
    warnings: list[str]

    @property
    def at_precision_floor(self) -> bool | None:
        """Whether no stage differs by more than rounding; None where nothing was measured that could tell."""
        if any(stage.status == "fail" for stage in self.stages):
            return False
        return any(s.ratio is not None and s.mode == "local" for s in self.stages) or None

    @property
    def compatible(self) -> bool:
        """Whether the documented rule holds for every input."""
        return all(_is_compatible(self._last_run(item), self.gates) for item in self.items)

    @property
    def verdict(self) -> str:
        """``pass`` if what is required holds, else ``fail``."""
        floor, compatible, least = self.at_precision_floor, self.compatible, self.gates.min_sqnr
        if least is not None:
            return "pass" if all(_reaches(self._last_run(item), least) for item in self.items) else "fail"
        needed = {"both": compatible and floor, "compatible": compatible, "floor": floor}
        return "pass" if needed[self.require or ("compatible" if floor is None else "both")] else "fail"

    @property
    def first_divergence(self) -> dict[str, Any] | None:
        """The first stage that fails by itself; None if there is none."""
        return first_divergence(self.stages, self.gates)

    @property
    def floor(self) -> dict[str, Any]:
        """Largest error of the reference itself by number format, where it was measured."""
        floors: dict[str, float] = {}
        for stage in self.stages:
            if stage.floor is not None:
                floors[stage.precision] = max(stage.floor, floors.get(stage.precision, 0.0))
        return {low: {"reference": HIGHER[low], "largest": largest} for low, largest in floors.items()}

    def _last_run(self, item: Item) -> list[Stage]:
        """Stages of one input in the candidate's own format, errors accumulating if they did anywhere."""
        ours = [s for s in self.stages if s.input == item.name and s.precision in self.plan[-1:]]
        return [s for s in ours if s.mode == "free"] or [s for s in ours if s.mode == "local"]

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


def judge_stage(
    name: str, stage: str, mode: str, low: str, trial: Trial, floor: Trial | None, gates: Gates
) -> Stage:
    """Judge one stage of one run by its ratio to the floor."""
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
    """Sort stages in forward order: a layer's parts, in the order they ran, come before the layer."""
    fixed = {"audit": -1, "decode": 0, "preprocess": 1, "pixels": 2, "embed": 3, "post": 5, "head": 6}
    if stage in fixed:
        return fixed[stage], 0, 0
    layer, _, part = stage.removeprefix("layer.").partition("/")
    return 4, int(layer), 0 if part else 1


def _is_compatible(stages: list[Stage], gates: Gates) -> bool:
    """Apply the documented rule to the hidden state it is meant for, or to the last stage both sides have."""
    layers = [s for s in stages if s.stage == "embed" or (s.stage[:6] == "layer." and "/" not in s.stage)]
    wanted = layers[gates.layer] if -len(layers) <= gates.layer < len(layers) else None
    usable = [s for s in stages if s.trial or s.status == "fail"]
    stage = wanted if wanted in usable else (usable[-1] if usable else None)
    return stage is not None and _matches(stage, gates)


def _matches(stage: Stage, gates: Gates) -> bool:
    measured = stage.trial.measured if stage.trial else None
    return measured is not None and not judge(measured, threshold=gates.threshold)


def _reaches(stages: list[Stage], least: float) -> bool:
    """Whether the last stage has only finite values and so many decibels."""
    last = max(
        (s for s in stages if s.figures and s.mode == "free"), key=lambda s: place(s.stage), default=None
    )
    return last is not None and not last.figures["nonfinite"] and bool(last.figures["sqnr_db"] >= least)


def first_divergence(stages: list[Stage], gates: Gates) -> dict[str, Any] | None:
    """Name the first stage in forward order that fails by itself, in the finest precision that shows it."""
    failing = [s for s in stages if s.status == "fail"]
    if not failing and not any(s.ratio is not None for s in stages):
        failing = [s for s in stages if s.mode == "free" and s.trial and not _matches(s, gates)]
    if not failing:
        return None
    order = {"input": 0, "local": 1, "free": 2}
    first = min(failing, key=lambda s: (order[s.mode], place(s.stage)))
    layer, _, sub = first.stage.partition("/")
    parts = any(s.stage.startswith(f"{first.stage}/") and s.mode == "local" for s in stages)
    inherited = [
        s.stage for s in stages if s.status == "inherited" and "/" not in s.stage and s.stage != layer
    ]
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
