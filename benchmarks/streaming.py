"""Blocks of float32 come at half the speed of the barest loop or better, in memory that does not grow.

A 1 GB bfloat16 checkpoint of two shards, in the page cache. The barest loop: preadv into one reused buffer of
1 MiB and numpy's conversion into one reused float32 buffer.

The earlier program documented 100 to 500 thousand parameters a second; hilm's best rate by block is divided
by the higher figure. Sparse checkpoints of one bfloat16 tensor show that memory does not depend on the size
of the file; the rate of a consumer that takes blocks must not depend on the chunk size.

Run: python benchmarks/streaming.py
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from harness import Figure, Gate, Result, main, paired, seconds
from models import llama, parameters, random_bf16, write, write_sparse
from processes import extra_memory

from hilm.weights import MemoryEfficientParameterStreamer, StreamingConfig, open_checkpoint

SHAPES = llama(width=2048, layers=8, hidden=5632, vocabulary=32_000, head=True)
RAW_BYTES = 1 << 20
CHUNKS = (256, 1024, 8192)
CHUNKED_VALUES = 1 << 26
EARLIER = 0.5e6
"""Parameters a second, the best that was documented of the earlier program."""

SPARSE_GIB = (2, 64)


def stream(folder: Path) -> None:
    """Touch every value as float32."""
    with open_checkpoint(folder) as checkpoint:
        for block in checkpoint.blocks():
            assert len(block.values)


def read_plainly(folder: Path, *, convert: bool) -> None:
    """Read all shards through one buffer, and convert the bits if asked."""
    raw = np.empty(RAW_BYTES // 2, np.uint16)
    bits = np.empty(RAW_BYTES // 2, np.float32).view(np.uint32)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            position = 0
            while count := os.preadv(file.fileno(), [raw.data], position):
                if convert:
                    np.copyto(bits[: count // 2], raw[: count // 2])
                    np.left_shift(bits[: count // 2], 16, out=bits[: count // 2])
                position += count


def read_chunks(folder: Path, size: int) -> None:
    """Take chunks until there are enough values."""
    config = StreamingConfig(chunk_size=size, adaptive_chunk_sizing=False)
    for _, _, progress in MemoryEfficientParameterStreamer(config).stream(folder):
        if progress.processed_parameters >= CHUNKED_VALUES:
            return


def chunk_label(size: int) -> str:
    """What a rate is called."""
    return f"chunks of {size:,}, best of 3"


def chunk_rates(folder: Path) -> dict[str, Figure]:
    """Values a second through the chunk iterator."""
    rates: dict[str, Figure] = {}
    for size in CHUNKS:
        best = min(seconds(partial(read_chunks, folder, size)) for _ in range(3))
        rates[chunk_label(size)] = (CHUNKED_VALUES / best / 1e6, "M values/s")
    return rates


def sum_blocks(folder: Path, size: int) -> None:
    """Sum every block, with chunks of so many values asked for."""
    streamer = MemoryEfficientParameterStreamer(StreamingConfig(size))
    for block, _ in streamer.stream_blocks(folder):
        block.values.sum()


def independence(folder: Path) -> float:
    """Lowest rate by block at any chunk size, relative to that at a million."""
    return min(
        1 / paired(partial(sum_blocks, folder, size), partial(sum_blocks, folder, 1 << 20), 5).ratio
        for size in CHUNKS
    )


def sparse_growth(folder: Path, gib: int) -> float:
    """MiB that streaming a sparse file of so many GiB takes beyond the imports."""
    return extra_memory(stream, write_sparse(folder / f"{gib}", gib << 30)) / 2**20


def measure() -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(
            Path(temporary) / "model", SHAPES, "BF16", random_bf16(np.random.default_rng(1)), shards=2
        )
        times = paired(lambda: stream(folder), lambda: read_plainly(folder, convert=True), 7)
        raw = min(seconds(lambda: read_plainly(folder, convert=False)) for _ in range(3))
        memory = extra_memory(stream, folder)
        rates, even = chunk_rates(folder), independence(folder)
        small, large = (sparse_growth(Path(temporary), gib) for gib in SPARSE_GIB)
    values = parameters(SHAPES)
    best = values / min(times.first)
    return Result(
        name="streaming",
        claim="A checkpoint streams to float32 at half a bare loop's speed or better, in constant memory",
        command="python benchmarks/streaming.py",
        gates=(
            Gate("rate / bare loop with the same conversion", 1 / times.ratio, ">=", 0.5, "x"),
            Gate("memory beyond the imports", memory / 2**20, "<=", 112, "MiB"),
            Gate("the same, sparse file of 64 GiB", large, "<=", 64, "MiB"),
            Gate("64 GiB against 2 GiB", large - small, "<=", 4, "MiB"),
            Gate("chunks of 256, a Python loop", rates[chunk_label(256)][0], ">=", 60, "M values/s", aim=200),
            Gate("rate by block at chunk 256 to 8,192 / at 1 M", even, ">=", 0.9, "x"),
            Gate("rate by block / the 0.5 M/s of the earlier program", best / EARLIER, ">=", 1000, "x"),
        ),
        figures={
            "checkpoint": (2 * values / 1e9, "GB"),
            "blocks as float32, best": (best / 1e6, "M values/s"),
            "bare loop, best": (values / min(times.second) / 1e6, "M values/s"),
            "bare loop without conversion, best": (values / raw / 1e6, "M values/s"),
            **rates,
        },
    )


if __name__ == "__main__":
    main(measure)
