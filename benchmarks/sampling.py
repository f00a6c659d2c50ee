"""A thousand small models are sampled, filmed and catalogued at 150 a second or more, on two cores.

The whole command counts, its start included. Each model has its own random weights. The steady rate leaves
out what a run of a tenth of the models costs.

Run: python benchmarks/sampling.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from harness import Gate, Result, main
from models import bert, gpt2, normal, parameters, write
from processes import HILM, Run, pinned, watch

MODELS, FEW = 1000, 100
CORES = 2
SIZE = {"width": 128, "layers": 4, "vocabulary": 1500, "positions": 128}
SHAPES = (gpt2(**SIZE), bert(**SIZE))


def make_models(folder: Path) -> list[str]:
    """Write GPT-2-like and BERT-like models in turn."""
    made = []
    for n in range(MODELS):
        draw = normal(np.random.default_rng([3, n]))
        made.append(str(write(folder / f"model-{n:04d}", SHAPES[n % len(SHAPES)], "F32", draw)))
    return made


def encode(models: list[str], store: Path) -> Run:
    """Run the command on two cores and make sure that it did all of them."""
    command = [
        HILM,
        "encode",
        "--mode",
        "sample",
        "--max-params",
        "30000",
        "--json",
        "--storage-dir",
        str(store),
    ]
    with pinned(CORES):
        run = watch([*command, *models])
    document = json.loads(run.out)
    if document["failed"] or len(document["models"]) != len(models):
        raise RuntimeError(f"{len(document['models'])} of {len(models)} models were encoded")
    return run


def measure() -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        models = make_models(Path(temporary) / "models")
        encode(models[:2], Path(temporary) / "first")
        few = encode(models[:FEW], Path(temporary) / "few")
        every = encode(models, Path(temporary) / "every")
    return Result(
        name="sampling",
        claim=f"`hilm encode --mode sample` films {MODELS:,} models of 1 M parameters at 150 a second",
        command="python benchmarks/sampling.py",
        gates=(Gate("models per second, whole command", MODELS / every.wall, ">=", 150, "models/s"),),
        figures={
            "steady": ((MODELS - FEW) / (every.wall - few.wall), "models/s"),
            "whole command": (every.wall, "s"),
            "processor time": (every.cpu, "s"),
            "peak memory, all processes": (every.peak / 2**20, "MiB"),
            "parameters of a GPT-2-like model": (parameters(SHAPES[0]) / 1e6, "M"),
            "parameters of a BERT-like model": (parameters(SHAPES[1]) / 1e6, "M"),
        },
    )


if __name__ == "__main__":
    main(measure)
