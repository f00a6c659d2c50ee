"""What the benchmarks share: paired timing, gates, and the result files the tables are made from.

A gate compares the measured value as it is; nothing is clamped, and nothing is rounded before it is compared.
"""

from __future__ import annotations

import json
import math
import operator
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).with_name("results")
MISSED = 3
"""Exit code of a benchmark with a gate that is not satisfied."""

COMPARE = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}

Comparison: TypeAlias = Literal["<", "<=", ">="]
Figure: TypeAlias = tuple[float, str]
"""A measured value and its unit."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a measured value must satisfy.

    Attributes:
        name: What was measured.
        value: The measurement.
        comparison: How ``value`` stands to ``required`` when all is well.
        required: The limit.
        unit: Of all three numbers; ``x`` for a ratio.
        aim: A better value that is worked towards, if there is one.
    """

    name: str
    value: float
    comparison: Comparison
    required: float
    unit: str
    aim: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the measurement satisfies the gate; a NaN never does."""
        return bool(COMPARE[self.comparison](self.value, self.required))


@dataclass(frozen=True, slots=True)
class Result:
    """One claim, and what was measured.

    Attributes:
        name: The script's name.
        claim: One sentence for the reader of the README.
        command: How to measure it again.
        gates: What decides whether the claim holds.
        figures: Further measurements, for the reader.
        table: Measurements by kind, as text; the first line is the header.
        misses: What went wrong, one sentence each.
    """

    name: str
    claim: str
    command: str
    gates: tuple[Gate, ...]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    table: tuple[tuple[str, ...], ...] = ()
    misses: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every gate is satisfied."""
        return all(gate.ok for gate in self.gates)

    def document(self) -> dict[str, Any]:
        """Everything, as it is written to the result file."""
        return {
            "name": self.name,
            "claim": self.claim,
            "command": self.command,
            "ok": self.ok,
            "gates": [asdict(gate) | {"ok": gate.ok} for gate in self.gates],
            "figures": {name: {"value": value, "unit": unit} for name, (value, unit) in self.figures.items()},
            **({"table": self.table, "misses": self.misses} if self.table else {}),
            "machine": machine(),
        }


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of two actions that ran in turn."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the pairs of first / second: a slow spell of the machine hits both of a pair."""
        return statistics.median(a / b for a, b in zip(self.first, self.second, strict=True))


def paired(
    first: Callable[[], object],
    second: Callable[[], object],
    pairs: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Pairs:
    """Time two actions in turn, A B A B …, after one run of each that warms caches and compiles kernels."""
    first()
    second()
    times = [(seconds(first, clock), seconds(second, clock)) for _ in range(pairs)]
    return Pairs(tuple(a for a, _ in times), tuple(b for _, b in times))


def seconds(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call: wall time, or with ``time.process_time`` that of the processor."""
    start = clock()
    action()
    return clock() - start


def machine() -> dict[str, Any]:
    """What the figures depend on, without anything that names the machine."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "numba": version("numba"),
    }


def cpu_model() -> str:
    """The processor's name; its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def record(result: Result, folder: Path = RESULTS) -> Path:
    """Write a result; the file is complete or as it was before.

    Raises:
        ValueError: A measurement is not a finite number.
    """
    text = json.dumps(result.document(), indent=1, ensure_ascii=False, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
    return path


def number(value: float, unit: str, comparison: Comparison = "<", required: float = math.nan) -> str:
    """Write a measurement with three digits, or as many as it takes not to look better than it is."""
    truth = COMPARE[comparison](value, required)
    digits = 3
    while digits < 17 and COMPARE[comparison](float(f"{value:.{digits}g}"), required) != truth:
        digits += 1
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    text = f"{float(f'{value:.{digits}g}'):,.{places}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {unit}".strip()


def main(measure: Callable[[], Result], folder: Path = RESULTS) -> None:
    """Measure, record, print, and exit with ``MISSED`` if a gate is not satisfied."""
    result = measure()
    record(result, folder)
    print(result.claim)
    for gate in result.gates:
        limit = f"{gate.comparison} {number(gate.required, gate.unit)}"
        shown = number(gate.value, gate.unit, gate.comparison, gate.required)
        print(f"  {'ok' if gate.ok else 'NO':4}{gate.name}: {shown} (required {limit})")
    for name, (value, unit) in result.figures.items():
        print(f"      {name}: {number(value, unit)}")
    sys.exit(0 if result.ok else MISSED)
