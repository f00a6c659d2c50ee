"""No damaged reel passes verification, and none gives a wrong tensor.

Four small reels that use every coder between them: an archive, with a film in front, two of rounded weights
and a delta. Each is damaged 3,000 times, as often in each region of the file: 1,000 flipped bits, 1,000
lengths cut, 1,000 times 64 bytes overwritten. Each time the whole reel is verified, and every tensor read.

Run: python benchmarks/corruption.py
"""

from __future__ import annotations

import random
import tempfile
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from harness import Gate, Result, main
from safetensors.numpy import save_file

from hilm.errors import HilmError, VerificationError
from hilm.reel.container import ReelFile
from hilm.reel.decoder import Reel
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.reel.encoder import encode_archive, encode_small
from hilm.reel.rate import Rounding
from hilm.reel.sections import ATOM, FOOTER_BYTES, HEADER_BYTES
from hilm.reel.verification import verify_reel
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Damage = Callable[[bytearray, int, random.Random], bytearray]

CASES = 1000


def write_models(folder: Path) -> tuple[Path, Path]:
    """A model with floats, integers, bytes, words of noise and constants; and a fine-tune of it."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((96, 128)).astype(np.float32)
    tensors = {
        "float": normal,
        "half": normal[:40].astype(np.float16),
        "integer": rng.integers(-9, 9, (40, 40)),
        "byte": rng.integers(0, 9, (64, 64), np.uint8),
        "stored": rng.integers(0, 1 << 32, 500, np.uint32),
        "constant": np.ones((40, 40), np.float32),
    }
    changes = {"float": normal * np.float32(1.001), "half": tensors["half"] + np.float16(0.01)}
    base, tuned = folder / "base", folder / "tuned"
    for model, weights in ((base, tensors), (tuned, tensors | changes)):
        model.mkdir()
        (model / "config.json").write_text('{"hidden_size": 128}')
        save_file(weights, model / "model.safetensors")
    return base, tuned


def make_reels(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The base of the delta, and the reels by name."""
    base, tuned = write_models(folder)
    with open_checkpoint(base) as old, open_checkpoint(tuned) as new:
        reports = {
            "archive": encode_archive(old, folder / "archive.mp4"),
            "delta": encode_delta(new, folder / "delta.mp4", CheckpointBase(old), preview=False),
            **{
                kind: encode_small(
                    old, folder / f"{kind}.mp4", Rounding(error=0.005, quantiser=kind), preview=False
                )
                for kind in ("tcq", "ecsq")
            },
        }
    return base, {name: report.reel.path for name, report in reports.items()}


def regions(path: Path) -> list[tuple[int, int]]:
    """Front, atom header, section header, records, index, manifest, footer: first and last-plus-one byte."""
    with ReelFile.open(path) as reel:
        origin, section = reel._origin, reel._sections[-1]  # noqa: SLF001 - no reader needs to know
    inner = (0, HEADER_BYTES, section.index, section.manifest, section.footer, section.footer + FOOTER_BYTES)
    return list(pairwise([0, origin - ATOM.size, *(origin + place for place in inner)]))


def flip(data: bytearray, place: int, generator: random.Random) -> bytearray:
    data[place] ^= 1 << generator.randrange(8)
    return data


def cut(data: bytearray, place: int, generator: random.Random) -> bytearray:
    del generator
    return data[:place]


def overwrite(data: bytearray, place: int, generator: random.Random) -> bytearray:
    noise = generator.randbytes(min(64, len(data) - place))
    if data[place : place + 64] == noise:
        raise RuntimeError("the noise is what was there")
    data[place : place + 64] = noise
    return data


@contextmanager
def opened(path: Path, base: Path) -> Iterator[Reel]:
    """An open reel; a delta stands on its base."""
    with Reel.open(path) as reel, open_checkpoint(base) as checkpoint:
        if reel.pinned is not None:
            reel.stand_on(CheckpointBase(checkpoint))
        yield reel


def read(path: Path, base: Path) -> dict[str, bytes]:
    """Stored bytes of every tensor of an intact reel."""
    with opened(path, base) as reel:
        return {name: reel.words(name).tobytes() for name in reel.tensors}


def examine(path: Path, base: Path, truth: dict[str, bytes]) -> tuple[bool, int]:
    """Whether verification notices, and how many tensors come out wrong."""
    wrong = 0
    try:
        with opened(path, base) as reel:
            for name, expected in truth.items():
                with suppress(VerificationError):
                    wrong += reel.words(name).tobytes() != expected
            return not verify_reel(reel).ok, wrong
    except HilmError:  # it does not even open
        return True, wrong


def damage(reel: Path, base: Path, how: Damage) -> tuple[int, int]:
    """Damage a reel in ``CASES`` places; return how often it went unnoticed, and wrong tensors."""
    generator, places, data = random.Random(how.__name__), regions(reel), reel.read_bytes()
    truth, path = read(reel, base), reel.with_name("damaged.mp4")
    if examine(reel, base, truth) != (False, 0):
        raise RuntimeError("the reel is damaged from the start")
    missed = wrong = 0
    for number in range(CASES):
        place = generator.randrange(*places[number % len(places)])
        path.write_bytes(how(bytearray(data), place, generator))
        noticed, errors = examine(path, base, truth)
        missed, wrong = missed + (not noticed), wrong + errors
    return missed, wrong


def measure() -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        base, reels = make_reels(Path(temporary))
        sizes = {f"{name}: size": (path.stat().st_size / 1024, "KiB") for name, path in reels.items()}
        found = {what: [damage(path, base, how) for path in reels.values()] for what, how in DAMAGES.items()}
    wrong = sum(errors for outcomes in found.values() for _, errors in outcomes)
    return Result(
        name="corruption",
        claim="No damaged reel passes verification, and none gives a wrong tensor",
        command="python benchmarks/corruption.py",
        gates=(
            *(
                Gate(f"{what} unnoticed, of {CASES * len(reels):,}", sum(m for m, _ in outcomes), "<=", 0, "")
                for what, outcomes in found.items()
            ),
            Gate("wrong tensors", wrong, "<=", 0, ""),
        ),
        figures=sizes,
    )


DAMAGES = {"flipped bits": flip, "cut lengths": cut, "overwritten 64 bytes": overwrite}

if __name__ == "__main__":
    main(measure)
