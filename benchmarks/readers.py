"""Blocks of float32 are summed at 0.6 times the speed of the fastest other reader or better.

A bfloat16 checkpoint of 2.3 GB in four shards, in the page cache. Every reader converts it to float32 and
sums it, in one thread; hilm's blocks are summed by the library that the other reader uses. The others:
safetensors' ``safe_open`` into torch and into numpy with ml_dtypes, and ``mmap``; each tensor is converted
piece by piece into one reused buffer.

Run: python benchmarks/readers.py
"""

from __future__ import annotations

import json
import mmap
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401 - teaches numpy the type
import numpy as np
import torch
from harness import Figure, Gate, Result, main, paired
from models import llama, parameters, random_bf16, write
from processes import extra_memory
from safetensors import safe_open

from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SHAPES = llama(width=2048, layers=20, hidden=5632, vocabulary=32_000, head=True)
PIECE = 1 << 18
"""Values converted at a time: what hilm's blocks hold."""


def hilm_torch(folder: Path) -> float:
    """hilm, torch."""
    with open_checkpoint(folder) as checkpoint:
        return sum(float(torch.from_numpy(block.values).sum()) for block in checkpoint.blocks())


def hilm_numpy(folder: Path) -> float:
    """hilm, numpy."""
    with open_checkpoint(folder) as checkpoint:
        return sum(float(block.values.sum()) for block in checkpoint.blocks())


def safe_open_torch(folder: Path) -> float:
    """safe_open, torch."""
    total, out = 0.0, torch.empty(PIECE)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                for piece in file.get_tensor(name).view(-1).split(PIECE):
                    total += float(out[: len(piece)].copy_(piece).sum())
    return total


def safe_open_numpy(folder: Path) -> float:
    """safe_open, numpy."""
    total, out = 0.0, np.empty(PIECE, np.float32)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                total += add(file.get_tensor(name).ravel().view(np.uint16), out)
    return total


def mapped(folder: Path) -> float:
    """Plain mmap, numpy."""
    total, out = 0.0, np.empty(PIECE, np.float32)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            for values in tensors(pages):
                total += add(values, out)
            del values
    return total


def tensors(pages: mmap.mmap) -> Iterator[NDArray[np.uint16]]:
    """Views of all tensors of a mapped file."""
    start = 8 + int.from_bytes(pages[:8], "little")
    for entry in json.loads(pages[8:start]).values():
        begin, end = entry["data_offsets"]
        yield np.frombuffer(pages, np.uint16, (end - begin) // 2, start + begin)


def add(words: NDArray[np.uint16], out: NDArray[np.float32]) -> float:
    """Sum bfloat16 values through one buffer."""
    total, bits = 0.0, out.view(np.uint32)
    for start in range(0, len(words), PIECE):
        piece = words[start : start + PIECE]
        np.copyto(bits[: len(piece)], piece)
        np.left_shift(bits[: len(piece)], 16, out=bits[: len(piece)])
        total += float(out[: len(piece)].sum())
    return total


PAIRS = ((hilm_torch, safe_open_torch), (hilm_numpy, safe_open_numpy), (hilm_numpy, mapped))


def measure() -> Result:
    torch.set_num_threads(1)
    values, ratios, figures = parameters(SHAPES), [], dict[str, Figure]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(
            Path(temporary) / "model", SHAPES, "BF16", random_bf16(np.random.default_rng(1)), shards=4
        )
        for ours, other in PAIRS:
            np.testing.assert_allclose(other(folder), ours(folder), rtol=1e-3)
            times = paired(partial(ours, folder), partial(other, folder), 7)
            ratios.append(1 / times.ratio)
            label = str(other.__doc__).rstrip(".")
            figures[f"{label}, best"] = (values / min(times.second) / 1e6, "M values/s")
            figures[f"hilm beside it, best ({label})"] = (values / min(times.first) / 1e6, "M values/s")
            figures[f"hilm / {label}, median of 7 pairs"] = (ratios[-1], "x")
        memory = extra_memory(hilm_numpy, folder)
    return Result(
        name="readers",
        claim="Weights are read, converted and summed at 0.6 times the speed of safe_open and mmap or better",
        command="python benchmarks/readers.py",
        gates=(
            Gate("rate / best of safe_open and mmap", min(ratios), ">=", 0.6, "x"),
            Gate("memory beyond the imports", memory / 2**20, "<=", 112, "MiB"),
        ),
        figures={"checkpoint": (2 * values / 1e9, "GB"), **figures},
    )


if __name__ == "__main__":
    main(measure)
