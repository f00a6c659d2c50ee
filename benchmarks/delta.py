"""A fine-tune is kept bit for bit as what differs from its base, in a fraction of what XOR and zstd take.

Three fine-tunes of the real MiniLM, made here, in float32 and, as the base then is, rounded to bfloat16. The
other side combines the words of both by XOR, takes the bytes apart into planes and compresses each plane with
zstd -3, for every tensor alone or for all together, whichever is smaller. The reel counts with everything in
it but the film in front, and is decoded again.

Run: python benchmarks/delta.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from fine_tunes import BASE, make_fine_tunes
from harness import Figure, Gate, Result, main, seconds
from models import round_to_bf16

from hilm.reel.codecs import compress_planes
from hilm.reel.decoder import Reel
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.weights import Checkpoint, open_checkpoint

REQUIRED = {"bfloat16": (0.60, 0.48), "float32": (0.87, 0.60)}


def xor_bytes(model: Checkpoint, base: Checkpoint) -> int:
    """Bytes of the differences by XOR, byte planes and zstd."""
    infos = [info for info in model.tensors.values() if info.is_weight]
    pairs = [(model.words(info.name), base.words(info.name)) for info in infos]
    new, old = (np.concatenate(part) for part in zip(*pairs, strict=True))
    apart = (compress_planes(new, info.type, old) for (new, old), info in zip(pairs, infos, strict=True))
    return min(sum(apart), compress_planes(new, infos[0].type, old))


def changed(model: Checkpoint, base: Checkpoint) -> float:
    """Share of words that are others than in the base."""
    pairs = [
        (model.words(n).view(i.type.word), base.words(n).view(i.type.word)) for n, i in model.tensors.items()
    ]
    return sum(int(np.count_nonzero(a != b)) for a, b in pairs) / sum(a.size for a, _ in pairs)


def decode(path: Path, model: Checkpoint, base: Checkpoint) -> None:
    """Decode the weight file; it must be the one that was encoded."""
    with Reel.open(path) as reel:
        reel.stand_on(CheckpointBase(base))
        source = reel.file.manifest["source"]
        assert source is not None
        if b"".join(map(bytes, reel.file_pieces(source["files"][0]))) != model.read_file(
            0, 0, model.files[0].size
        ):
            raise RuntimeError("the reel does not give back the bits it was made from")


def compare(label: str, path: Path, old: Path, out: Path, kind: str) -> tuple[Gate, dict[str, Figure]]:
    """Encode one fine-tune both ways, and check the reel."""
    with open_checkpoint(path) as model, open_checkpoint(old) as base:
        count = model.total_parameters
        report = encode_delta(model, out, CheckpointBase(base), preview=False)
        again = out.with_name("again.mp4")
        took = seconds(lambda: encode_delta(model, again, CheckpointBase(base), preview=False))
        back = seconds(lambda: decode(out, model, base))
        theirs = 8 * xor_bytes(model, base) / count
        share = changed(model, base)
    gate = Gate(label, report.reel.bits_per_weight / theirs, "<=", REQUIRED[kind][0], "x", REQUIRED[kind][1])
    return gate, {
        f"{label}: reel": (report.reel.bits_per_weight, "bits/weight"),
        f"{label}: XOR, planes, zstd -3": (theirs, "bits/weight"),
        f"{label}: words that changed": (100 * share, "%"),
        f"{label}: encode": (count / took / 1e6, "M weights/s"),
        f"{label}: decode": (count / back / 1e6, "M weights/s"),
    }


def measure() -> Result:
    gates, figures = [], dict[str, Figure]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        half = round_to_bf16(BASE, folder / "base")
        for name, path in make_fine_tunes().items():
            for kind in REQUIRED:
                model, base = path, BASE
                if kind == "bfloat16":
                    model, base = round_to_bf16(path, folder / name), half
                label = f"{name.replace('-', ' ')}, {kind}"
                gate, more = compare(label, model, base, folder / f"{name}-{kind}.mp4", kind)
                gates.append(gate)
                figures |= more
    return Result(
        name="delta",
        claim="A fine-tune is kept bit for bit in a fraction of what XOR, byte planes and zstd take",
        command="python benchmarks/delta.py",
        gates=tuple(gates),
        figures=figures,
    )


if __name__ == "__main__":
    main(measure)
