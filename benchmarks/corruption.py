"""No damaged reel passes verification, and none gives a wrong tensor.

One small reel that uses every coder and has a film in front. It is damaged 3,000 times, as often in each
region of the file: 1,000 flipped bits, 1,000 lengths cut, 1,000 times 64 bytes overwritten. Each time the
whole reel is verified, and every tensor read.

Run: python benchmarks/corruption.py
"""

from __future__ import annotations

import random
import tempfile
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from harness import Gate, Result, main
from safetensors.numpy import save_file

from hilm.errors import HilmError, VerificationError
from hilm.reel.container import ReelFile
from hilm.reel.decoder import Reel
from hilm.reel.encoder import encode_archive
from hilm.reel.sections import ATOM, FOOTER_BYTES, HEADER_BYTES
from hilm.reel.verification import verify_reel
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    Damage = Callable[[bytearray, int, random.Random], bytearray]

CASES = 1000


def make_reel(folder: Path) -> Path:
    """A reel of every coder: floats, integers, bytes, stored words, constants; and a configuration file."""
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
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"hidden_size": 128}')
    save_file(tensors, model / "model.safetensors")
    with open_checkpoint(model) as checkpoint:
        return encode_archive(checkpoint, folder / "reel.mp4").reel.path


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


def examine(path: Path, truth: dict[str, bytes]) -> tuple[bool, int]:
    """Whether verification notices, and how many tensors come out wrong."""
    wrong = 0
    try:
        with Reel.open(path) as reel:
            for name, expected in truth.items():
                with suppress(VerificationError):
                    wrong += reel.words(name).tobytes() != expected
            return not verify_reel(reel).ok, wrong
    except HilmError:  # it does not even open
        return True, wrong


def damage(reel: Path, truth: dict[str, bytes], how: Damage) -> tuple[int, int]:
    """Damage a reel in ``CASES`` places; return how often it was noticed, and wrong tensors."""
    generator, places, data = random.Random(how.__name__), regions(reel), reel.read_bytes()
    noticed = wrong = 0
    for number in range(CASES):
        place = generator.randrange(*places[number % len(places)])
        path = reel.with_name("damaged.mp4")
        path.write_bytes(how(bytearray(data), place, generator))
        found, errors = examine(path, truth)
        noticed, wrong = noticed + found, wrong + errors
    return noticed, wrong


def measure() -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        path = make_reel(Path(temporary))
        with Reel.open(path) as reel:
            truth = {name: reel.words(name).tobytes() for name in reel.tensors}
        if examine(path, truth) != (False, 0):
            raise RuntimeError("the reel is damaged from the start")
        found = {what: damage(path, truth, how) for what, how in DAMAGES.items()}
        size = path.stat().st_size
    wrong = sum(errors for _, errors in found.values())
    return Result(
        name="corruption",
        claim="No damaged reel passes verification, and none gives a wrong tensor",
        command="python benchmarks/corruption.py",
        gates=(
            *(Gate(f"{what} noticed", noticed, ">=", CASES, "") for what, (noticed, _) in found.items()),
            Gate("wrong tensors", wrong, "<=", 0, ""),
        ),
        figures={"size of the reel": (size / 1024, "KiB")},
    )


DAMAGES = {"flipped bits": flip, "cut lengths": cut, "overwritten 64 bytes": overwrite}

if __name__ == "__main__":
    main(measure)
