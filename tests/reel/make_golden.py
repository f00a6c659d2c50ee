"""Write golden reels, one for every coder and carrier: every later release must decode them to the same bits.

Run: python -m tests.reel.make_golden    (what is there stays as it is: it is of the release that made it)
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from hilm.reel.carrier import SUFFIXES
from hilm.reel.delta_base import CheckpointBase
from hilm.reel.delta_encoder import encode_delta
from hilm.reel.encoder import encode_archive, encode_small
from hilm.reel.rate import Rounding
from hilm.reel.sampling import encode_samples
from hilm.weights import open_checkpoint
from tests.reel.archives import sample_model
from tests.reel.reference_carrier import read_carried
from tests.reel.reference_decoder import decode_slab, read_reel, read_tensor
from tests.reel.reference_delta import read_delta
from tests.tiny import stored, write_model

GOLDEN = Path(__file__).with_name("golden")


def weights():
    """Every kind of word, and slabs that are constant or not worth coding."""
    rng = np.random.default_rng(2026)
    normal = rng.standard_normal((40, 50)).astype(np.float32)
    normal[3, 4] = 60.0
    return {
        "bf16": stored(normal, "BF16"),
        "f16": stored(normal.astype(np.float16)),
        "f32": stored(normal),
        "i32": stored(rng.integers(-40, 40, (20, 20)).astype(np.int32)),
        "u8": stored(rng.integers(0, 9, (20, 20)).astype(np.uint8)),
        "raw": stored(normal[0, :9]),
        "const": stored(np.full((40, 40), 0.5, np.float32)),
    }


def wide():
    """What a video carries: as little as it takes, mostly zero."""
    rng = np.random.default_rng(2026)
    few = (rng.random((256, 300)) < 0.02) * rng.standard_normal((256, 300))
    few[5, 5] = 300.0
    return {"w": stored(few.astype(np.float32), "BF16"), "u8": stored((few > 1).astype(np.uint8))}


def tuned(tensors):
    """The same with small changes, in all but one tensor."""
    new = {}
    for name, (dtype, shape, data) in tensors.items():
        raw = np.frombuffer(data, np.uint8).copy()
        raw[:: 24 if name != "f16" else raw.size] ^= name != "f16"
        new[name] = dtype, shape, raw.tobytes()
    return new


def make(folder: Path) -> None:
    """Write what is missing."""
    models = {"base": weights(), "tuned": tuned(weights()), "wide": wide(), "bytes": {"u8": wide()["u8"]}}
    for name, tensors in models.items():
        write_model(folder / name, tensors)
    options = {"preview": False, "threads": 1}
    jobs = {
        "archive": lambda c, out: encode_archive(c, out, **options),
        "tcq": lambda c, out: encode_small(c, out, Rounding(bits=4), **options),
        "ecsq": lambda c, out: encode_small(c, out, Rounding(bits=4, quantiser="ecsq"), **options),
    }
    for name, job in jobs.items():
        write(folder / "base", name, job)
    for name, bits in (("worddiff", None), ("tcq-delta", 2.5)):
        with open_checkpoint(folder / "base") as old:
            write(folder / "tuned", name, partial(delta, base=CheckpointBase(old), bits=bits))
    for carrier, layout in (("ffv1", "hilbert"), ("utvideo", "raster"), ("vp9", "flat")):
        ride = options | {"carrier": carrier, "layout": layout}
        write(
            folder / "wide",
            f"{carrier}-tcq",
            lambda c, out, r=ride: encode_small(c, out, Rounding(error=0.1), **r),
        )
    ride = options | {"carrier": "ffv1", "layout": "flat"}
    write(folder / "bytes", "ffv1-archive", lambda c, out: encode_archive(c, out, **ride))
    if not (GOLDEN / "sample.reel.mp4").exists():
        encode_samples([sample_model(folder / "base", 500)], GOLDEN / "sample.reel.mp4", preview=False)


def delta(checkpoint, out, base, bits):
    encode_delta(checkpoint, out, base, bits=bits, force=True, preview=False, threads=1)


def write(model: Path, name: str, job) -> None:
    out = GOLDEN / f"{name}.reel.mp4"
    if not out.exists():
        with open_checkpoint(model) as checkpoint:
            job(checkpoint, out)


def reference(name):
    """Every tensor, by the decoders that share no code with the package."""
    data = (GOLDEN / f"{name}.reel.mp4").read_bytes()
    companions = (GOLDEN / f"{name}.reel{suffix}" for suffix in SUFFIXES)
    video = next((path.read_bytes() for path in companions if path.exists()), data)
    manifest, records = read_reel(data, video)
    if manifest["carrier"] != "packed":
        return read_carried(data, video)
    if manifest["mode"] == "sample":
        (sample,) = manifest["samples"]
        return {"sample": decode_slab(records[0], records[1:], "F32", 1, sample["fill"])}
    if manifest["mode"] == "delta":
        return read_delta(data, reference("archive"))
    return {tensor["name"]: read_tensor(tensor, records) for tensor in manifest["tensors"]}


def digests(name):
    """SHA-256 of every tensor of a golden reel."""
    return {tensor: hashlib.sha256(raw).hexdigest() for tensor, raw in reference(name).items()}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
    names = sorted(path.name.removesuffix(".reel.mp4") for path in GOLDEN.glob("*.reel.mp4"))
    document = json.dumps({name: digests(name) for name in names}, indent=1, sort_keys=True)
    (GOLDEN / "expected.json").write_text(document + "\n")
