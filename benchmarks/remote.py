"""A remote checkpoint streams to float32 at 400 MB/s or better, although every request waits 50 ms.

A bfloat16 checkpoint of 0.5 GB behind a server on this machine, in a process of its own, which sleeps before
each answer. It is opened by its URL and streamed once per run.

Run: python benchmarks/remote.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from harness import Gate, Result, main, seconds
from models import llama, parameters, random_bf16, write
from processes import extra_memory

from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = llama(width=1024, layers=16, hidden=2816, vocabulary=32_000, head=True)
LATENCY = 0.05
RUNS = 5


@contextmanager
def server(file: Path, latency: float) -> Iterator[str]:
    """Serve one file; yields its URL."""
    words = [sys.executable, "-m", "tests.servers", file, str(latency), "/model.safetensors"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/model.safetensors"
        process.stdin.close()


def stream(url: str) -> None:
    """Touch every value as float32."""
    with open_checkpoint(url) as checkpoint:
        for block in checkpoint.blocks():
            assert len(block.values)


def measure() -> Result:
    size = 2 * parameters(SHAPES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(Path(temporary) / "model", SHAPES, "BF16", random_bf16(np.random.default_rng(1)))
        file, rates = folder / "model.safetensors", {}
        for latency in (0.0, LATENCY):
            with server(file, latency) as url:
                rates[latency] = size / min(seconds(lambda url=url: stream(url)) for _ in range(RUNS)) / 1e6
                memory = extra_memory(stream, url)
    return Result(
        name="remote",
        claim="A remote checkpoint streams at 400 MB/s although every request waits 50 ms",
        command="python benchmarks/remote.py",
        gates=(
            Gate(f"50 ms before every answer, best of {RUNS}", rates[LATENCY], ">=", 400, "MB/s"),
            Gate("memory beyond the imports", memory / 2**20, "<=", 112, "MiB"),
        ),
        figures={
            "checkpoint": (size / 1e9, "GB"),
            f"no latency, best of {RUNS}": (rates[0.0], "MB/s"),
        },
    )


if __name__ == "__main__":
    main(measure)
