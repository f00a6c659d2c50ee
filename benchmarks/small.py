"""Rounded weights take fewer bits than block formats of equal error, and decode to a working model.

Layer 2 of the real MiniLM and the first 1536 rows of its vocabulary, 2.4 million weights, coded as slabs;
bits are those of heads, chunks and index entries, errors are measured on what is decoded again. Block formats
stand with the error and size that they have on these weights. x265 codes the same weights as 10-bit pictures,
in turn with hilm, both in one thread. Last, the matrices of all layers are rounded, by hilm and to nf4, and
sentences from a small grammar are embedded with them.

Run: python benchmarks/small.py
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from harness import Figure, Gate, Result, main, paired
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from trained import MINILM as MODEL
from trained import minilm_matrices

from hilm.reel.block_formats import FORMATS
from hilm.reel.decoder import Reel, decode_files
from hilm.reel.distortion import Distortion
from hilm.reel.encoder import encode_small
from hilm.reel.quantizer import Quantizer
from hilm.reel.rate import LIKE, Rounding
from hilm.reel.records import RECORD
from hilm.reel.slab import decode_slab, encode_slab
from hilm.weights import open_checkpoint
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hilm.reel.slab import EncodedSlab

    Matrix = NDArray[np.float32]

F32 = DTYPES["F32"]
REQUIRED = {"q4_k": 3.80, "q5_k": 4.80, "q6_k": 5.80, "q8_0": 7.55, "nf4": 3.50, "int4": 3.20}
AIMS = {"q4_k": 3.75, "q5_k": 4.72, "q6_k": 5.68, "q8_0": 7.40, "nf4": 3.40, "int4": 3.10}
SIDE = 512
GREYS = 64  # of a standard deviation, in 10-bit pictures
QP = 20
SENTENCES = 300


@dataclass(frozen=True, slots=True)
class Coded:
    """A set of matrices, coded."""

    slabs: list[EncodedSlab]
    bits: float
    nmse: float


def encode(weights: list[Matrix], quantizer: Quantizer) -> Coded:
    """Code every matrix as one slab; errors are means by number of weights."""
    slabs, bits, noise = [], 0, 0.0
    for matrix in weights:
        words = matrix.view(np.uint8).ravel()
        slab = encode_slab(words, F32, *matrix.shape, planner=quantizer)
        bits += 8 * (slab.nbytes + RECORD.itemsize * (1 + len(slab.chunks)))
        noise += matrix.size * error(decode(slab, matrix), words)
        slabs.append(slab)
    count = sum(matrix.size for matrix in weights)
    return Coded(slabs, bits / count, noise / count)


def decode(slab: EncodedSlab, matrix: Matrix) -> NDArray[np.uint8]:
    return decode_slab(slab.head, slab.chunks, F32, *matrix.shape, rounded=True)


def error(found: NDArray[np.uint8], words: NDArray[np.uint8]) -> float:
    distortion = Distortion()
    distortion.add(found, words, F32)
    return distortion.error["nmse"]


def solve(weights: list[Matrix], octaves: Callable[[Coded], float]) -> Coded:
    """Move the step until it is off by no more than a thousandth of an octave."""
    step = 0.18
    for _ in range(12):
        coded = encode(weights, Quantizer(step))
        excess = octaves(coded)
        if abs(excess) < 0.001:
            return coded
        step *= 2**excess
    raise RuntimeError("the step does not converge")


def block_error(weights: list[Matrix], name: str) -> float:
    """Mean error of a block format on them."""
    errors = [error(FORMATS[name].round(m).view(np.uint8).ravel(), m.view(np.uint8).ravel()) for m in weights]
    return float(np.average(errors, weights=[matrix.size for matrix in weights]))


def pictures(weights: list[Matrix]) -> NDArray[np.uint16]:
    """The weights as 10-bit pictures, 64 grey levels to a standard deviation."""
    flat = np.concatenate([(m / np.sqrt(np.square(m, dtype=np.float64).mean())).ravel() for m in weights])
    padded = np.concatenate([flat, np.zeros(-flat.size % SIDE**2)]).reshape(-1, SIDE, SIDE)
    return np.clip(512 + np.rint(padded * GREYS), 0, 1023).astype(np.uint16)


def film(frames: NDArray[np.uint16]) -> tuple[bytes | None, list[av.Packet]]:
    """Code pictures with x265 at its default preset, in one thread."""
    codec = av.CodecContext.create("libx265", "w")
    codec.width = codec.height = SIDE
    codec.pix_fmt, codec.time_base, codec.framerate = "gray10le", Fraction(1, 25), Fraction(25)
    threads = "pools=none:frame-threads=1:log-level=none"
    codec.options = {"preset": "medium", "x265-params": f"qp={QP}:{threads}"}
    packets = []
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, "gray10le")
        picture.pts = number
        packets += codec.encode(picture)
    return codec.extradata, packets + codec.encode(None)


def play(extradata: bytes | None, packets: list[av.Packet]) -> int:
    """Decode what x265 wrote, in one thread; return the number of frames."""
    codec = av.CodecContext.create("hevc", "r")
    codec.thread_count, codec.extradata = 1, extradata
    return sum(len(codec.decode(packet)) for packet in [*packets, None])


def sizes(weights: list[Matrix]) -> tuple[list[Gate], dict[str, Figure]]:
    """Bits at the errors of other formats, and how far from the Gaussian bound at two rates."""
    gates, figures = [], {}
    for name, nmse in LIKE.items():
        coded = solve(weights, lambda c, nmse=nmse: math.log2(nmse / c.nmse) / 2)
        gates.append(
            Gate(
                f"at the error of {name}, {nmse:g}",
                coded.bits,
                "<=",
                REQUIRED[name],
                "bits/weight",
                AIMS[name],
            )
        )
        figures[f"{name} itself"] = FORMATS[name].bits, "bits/weight"
        figures[f"{name}, error measured here"] = block_error(weights, name), ""
    for bits, required, aim in ((3.5, 0.035, 0.02), (2.5, 0.055, 0.035)):
        coded = solve(weights, lambda c, bits=bits: c.bits - bits)
        gap = coded.bits - math.log2(1 / coded.nmse) / 2
        gates.append(
            Gate(f"gap to R(D) of a Gaussian at {bits} bits", gap, "<=", required, "bits/weight", aim)
        )
    plain = encode(weights, Quantizer(0.25, trellis=False))
    gap = plain.bits - math.log2(1 / plain.nmse) / 2
    figures["gap to R(D) without a trellis, 3.9 bits"] = gap, "bits/weight"
    return gates, figures


def speeds(weights: list[Matrix]) -> tuple[list[Gate], dict[str, Figure]]:
    """Encoding and decoding against x265 in the same run."""
    frames, quantizer, count = pictures(weights), Quantizer(0.18), sum(m.size for m in weights)
    filmed, coded = film(frames), encode(weights, quantizer)
    if play(*filmed) != len(frames):
        raise RuntimeError("x265 lost a frame")

    def write() -> None:
        for matrix in weights:
            encode_slab(matrix.view(np.uint8).ravel(), F32, *matrix.shape, planner=quantizer)

    forth = paired(lambda: film(frames), write)
    back = paired(
        lambda: play(*filmed), lambda: [decode(s, m) for s, m in zip(coded.slabs, weights, strict=True)]
    )
    rates = {
        "x265 encode": forth.first, "encode": forth.second, "x265 decode": back.first, "decode": back.second
    }  # fmt: skip
    gates = [
        Gate("encode, against x265", forth.ratio, ">=", 3.0, "x", 10.0),
        Gate("decode, against x265", back.ratio, ">=", 1.5, "x"),
    ]
    return gates, {n: (count / min(times) / 1e6, "M weights/s") for n, times in rates.items()}


def sentences() -> list[str]:
    """Sentences of a small grammar, every so many of all there are."""
    people = (
        "A tired nurse",
        "The old engineer",
        "My neighbour",
        "Every student",
        "The committee",
        "A violinist",
    )
    verbs = "repairs", "describes", "forgets", "sells", "admires"
    things = "the broken bridge", "a cheap telescope", "her first novel", "the tax reform", "a bowl of soup"
    ends = "before sunrise.", "in a small village.", "without help.", "all winter long.", "for her sister."
    every = [" ".join(words) for words in itertools.product(people, verbs, things, ends)]
    return every[:: len(every) // SENTENCES][:SENTENCES]


def ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(np.argsort(values))


def agreement(folder: Path, truth: NDArray[np.float32]) -> tuple[float, float]:
    """Mean cosine of sentence embeddings, and Spearman's correlation of the similarities of all pairs."""
    found = embed(folder)
    above = np.triu_indices(len(truth), 1)
    orders = [ranks((e @ e.T)[above]) for e in (truth, found)]
    return float((truth * found).sum(axis=1).mean()), float(np.corrcoef(*orders)[0, 1])


def embed(folder: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = SentenceTransformer(str(folder), device="cpu").encode(
        sentences(), normalize_embeddings=True, show_progress_bar=False
    )
    return vectors


def is_rounded(name: str, shape: Sequence[int]) -> bool:
    return name.startswith("encoder.") and len(shape) == 2


def write_nf4(folder: Path) -> Path:
    """Copy MiniLM with the matrices of its layers rounded to nf4."""
    shutil.copytree(MODEL, folder)
    tensors = load_file(MODEL / "model.safetensors")
    (folder / "model.safetensors").unlink()
    rounded = {n: FORMATS["nf4"].round(t) if is_rounded(n, t.shape) else t for n, t in tensors.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def task(folder: Path) -> tuple[list[Gate], dict[str, Figure]]:
    """Round the matrices of all layers of MiniLM, and embed sentences with them."""
    truth, out, decoded = embed(MODEL), folder / "x.reel.mp4", folder / "decoded"
    with open_checkpoint(MODEL) as checkpoint:
        kept = tuple(n for n, info in checkpoint.tensors.items() if not is_rounded(n, info.shape))
        encode_small(checkpoint, out, Rounding(bits=3.54, keep=kept), preview=False)
    with Reel.open(out) as reel:
        decode_files(reel, decoded)
        rounded = [t for t in reel.tensors.values() if "error" in t]
    bits = sum(t["bits"] for t in rounded) / sum(math.prod(t["shape"]) for t in rounded)
    cosine, spearman = agreement(decoded, truth)
    others = agreement(write_nf4(folder / "nf4"), truth)
    gates = [
        Gate("MiniLM with rounded matrices: size of those", bits, "<=", 3.56, "bits/weight"),
        Gate("cosine of its sentence embeddings", cosine, ">=", 0.970, ""),
        Gate("Spearman correlation of their similarities", spearman, ">=", 0.985, ""),
    ]
    names = "cosine with nf4, 4.13 bits/weight", "Spearman correlation with nf4"
    return gates, {name: (value, "") for name, value in zip(names, others, strict=True)}


def measure() -> Result:
    weights = minilm_matrices()
    with tempfile.TemporaryDirectory() as temporary:
        parts = [sizes(weights), speeds(weights), task(Path(temporary))]
    return Result(
        name="small",
        claim="Rounded weights take fewer bits than block formats of equal error",
        command="python benchmarks/small.py",
        gates=tuple(gate for gates, _ in parts for gate in gates),
        figures={name: figure for _, figures in parts for name, figure in figures.items()},
    )


if __name__ == "__main__":
    main(measure)
