"""Changes valid and hostile weight files at random and opens them, for as long as it is told.

A case fails when it raises what is no error of hilm's, takes two seconds of processor time, or more memory
than the limit.

Run: python -m tests.hostile.fuzzer SECONDS [--seed N] [--keep FOLDER] [FORMAT…]
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hilm.errors import HilmError
from hilm.weights import open_checkpoint
from tests.hostile import gguf_files, onnx_files, safetensors_files, torch_files
from tests.weights.other_formats import FILES, write_format

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = 256 << 20
SECONDS = 2.0
LARGEST = 64 << 10
"""Bytes of the files that are changed."""

STREAMED = 16 << 20
"""Bytes of values up to which an accepted file is streamed, too."""

HOSTILE = {
    "safetensors": safetensors_files,
    "torch": torch_files,
    "legacy": torch_files,
    "gguf": gguf_files,
    "onnx": onnx_files,
}
EDGES = [0, 1, 2, 7, 8, 127, 128, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


class TooLong(BaseException):
    """A case took more than its time; no handler may take it for anything else."""


def seeds(form: str) -> list[bytes]:
    """Files of a format: what a library wrote, then those at the edge of the rules, then hostile ones."""
    tensors = {
        "a.weight": torch.arange(60.0).reshape(5, 12),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "turned": torch.arange(12.0).reshape(3, 4).T,
    }
    tensors["same"] = tensors["a.weight"] if form in {"torch", "legacy"} else torch.zeros(2)
    with tempfile.TemporaryDirectory() as folder:
        valid = (write_format(Path(folder), tensors, form) / FILES[form]).read_bytes()
    found = [case.data for case in HOSTILE[form].cases()]
    edges = [data for _, data in HOSTILE[form].valid_cases()]
    return [valid] * (len(found) // 4) + [data for data in (*edges, *found) if len(data) <= LARGEST]


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A few edits: bytes, numbers at their edges, pieces doubled, dropped or taken from another file."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randint(0, len(out)), rng.choice((1, 2, 4, 8, 16, 64))
        match rng.randrange(7):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                number = rng.choice(EDGES) & (1 << 8 * min(length, 8)) - 1
                out[at : at + min(length, 8)] = number.to_bytes(min(length, 8), rng.choice(("little", "big")))
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length] * rng.choice((1, 1, 2, 50))
            case 4:
                start = rng.randint(0, len(other))
                out[at : at + rng.choice((0, length))] = other[start : start + length]
            case 5:
                out[at : at + length] = str(rng.choice(EDGES)).encode()
            case 6 if rng.random() < 0.2:
                del out[at:]
    return bytes(out)


def mutate_pickle(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The same within an archive whose frame stays right, so that the change is met at all."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return mutate(data, other, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in entries if name.endswith("data.pkl")]
    return torch_files.archive(entries | {name: mutate(entries[name], other, rng) for name in pickles})


def attempt(path: Path) -> str:
    """Open a file, stream it if it is small; what came of it."""
    try:
        with open_checkpoint(path) as checkpoint:
            held = sum(info.nbytes for info in checkpoint.tensors.values())
            if held <= STREAMED:
                for _ in checkpoint.blocks(include_integer=True, poison=True):
                    pass
            return "read" if held <= STREAMED else "listed"
    except HilmError as error:
        return getattr(error, "code", type(error).__name__)


def failures(form: str, seconds: float, seed: int, outcomes: Counter[str]) -> Iterator[tuple[bytes, str]]:
    """Files that fail, with the traceback."""
    rng, files, end = random.Random(seed), seeds(form), time.monotonic() + seconds
    whole = [files[0], *(data for _, data in HOSTILE[form].valid_cases())]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILES[form]
        while time.monotonic() < end:
            change = mutate_pickle if form == "torch" and rng.random() < 0.5 else mutate
            data = change(rng.choice(whole if change is mutate_pickle else files), rng.choice(files), rng)
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                outcomes[attempt(path)] += 1
            except (Exception, TooLong):  # noqa: BLE001 - whatever is wrong is the finding
                yield data, traceback.format_exc(limit=-4)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)


def give_up(*_: object) -> None:
    """End a case that takes too long."""
    raise TooLong


def confine() -> None:
    """Leave the process little more memory than it has, and cases their time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, give_up)


def main() -> int:
    parser = argparse.ArgumentParser(description="Open changed weight files until time is up.")
    parser.add_argument("seconds", type=float, help="for each format")
    parser.add_argument(
        "formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(HOSTILE)}; all by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where files that fail are kept")
    options = parser.parse_args()
    failed = 0
    for number, form in enumerate(options.formats or HOSTILE):
        with tempfile.TemporaryDirectory() as folder:  # compiles and imports what is needed once
            path = Path(folder) / FILES[form]
            path.write_bytes(seeds(form)[0])
            attempt(path)
        if number == 0:
            confine()
        outcomes: Counter[str] = Counter()
        for data, trace in failures(form, options.seconds, options.seed, outcomes):
            failed += 1
            sys.stdout.write(f"{form}: {trace}\n")
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{failed}-{FILES[form]}").write_bytes(data)
        sys.stdout.write(f"{form}: {outcomes.total():,} cases, {dict(outcomes.most_common())}\n")
        sys.stdout.flush()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
