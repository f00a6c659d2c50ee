"""Rounded weights of three trained models stay ahead of block formats, and of ZipNN when every bit is kept.

The models are layer 2 of the real MiniLM with the first 1536 rows of its vocabulary, and a GPT-2 and a Llama
that were trained here on the sources of the standard library. Each is rounded as far as q4_k, q5_k and nf4
round the very same tensors, and to 3.5 and 2.5 bits; rounded to bfloat16 it is archived. The figures are
those of `hilm report`: bytes in the reel, errors of what is decoded again. What is left of a difference in
errors counts as the bits it is worth on the Gaussian bound.

Run: python benchmarks/report.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Figure, Gate, Result, main
from models import round_to_bf16, write
from trained import make_models, minilm_matrices

import hilm
from hilm.reel.encoder import encode_archive, encode_small
from hilm.reel.rate import Rounding
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from hilm.reel.encoder import EncodeReport
    from hilm.weights import Checkpoint

SAVED = {"q4_k": (0.70, 0.75), "q5_k": (0.70, 0.78), "nf4": (0.627, 0.727)}
GAPS = {3.5: (0.035, 0.02), 2.5: (0.055, 0.035)}

Part = tuple[list[Gate], dict[str, Figure]]


class Meter:
    """Encodes a model in several ways, and reports on the reels."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self._folder, self._count = model, folder, 0

    def measure(self, encode: Callable[[Checkpoint, Path], EncodeReport]) -> dict[str, Any]:
        """What `hilm report` says of the reel that this makes."""
        self._count += 1
        out = self._folder / f"{self.model.name}-{self._count}.mp4"
        with open_checkpoint(self.model) as checkpoint:
            encode(checkpoint, out)
        store = hilm.Store(self._folder / "store")
        document: dict[str, Any] = hilm.report([out], against=self.model, store=store)["reels"][0]
        return document

    def round(self, **wish: float) -> dict[str, Any]:
        """The same of rounded weights, all of them together."""
        encode = lambda checkpoint, out: encode_small(checkpoint, out, Rounding(**wish), preview=False)
        rounded: dict[str, Any] = self.measure(encode)["rounded"]
        return rounded


def sizes(label: str, meter: Meter) -> Part:
    """Bits saved at the errors of other formats, and how far from the Gaussian bound."""
    gates, figures, others = [], {}, None
    for bits, (required, aim) in GAPS.items():
        rounded = meter.round(bits=bits)
        others = rounded["others"]
        name = f"{label}, {rounded['bits_per_weight']:.2f} bits: gap to R(D) of a Gaussian"
        gates.append(Gate(name, rounded["gap"], "<=", required, "bits/weight", aim))
    assert others is not None
    for name, (required, aim) in SAVED.items():
        rounded = meter.round(error=others[name]["nmse"])
        saved = rounded["others"][name]["saved"]
        gates.append(Gate(f"{label}: saved against {name}", saved, ">=", required, "bits/weight", aim))
        figures[f"{label}, at the error of {name}"] = rounded["bits_per_weight"], "bits/weight"
    figures |= {f"{label}: NMSE of {name}": (other["nmse"], "") for name, other in others.items()}
    return gates, figures


def archives(label: str, meter: Meter) -> Part:
    """Size in bfloat16 against other codecs."""
    exact = meter.measure(lambda checkpoint, out: encode_archive(checkpoint, out, preview=False))["exact"]
    bits = {name: other["bits_per_weight"] for name, other in exact["others"].items()}
    what = f"{label}, bfloat16 archive"
    gate = Gate(f"{what}, against ZipNN", exact["bits_per_weight"], "<", bits.pop("zipnn"), "bits/weight")
    return [gate], {f"{what}, {name}": (value, "bits/weight") for name, value in bits.items()}


def write_minilm(folder: Path) -> Path:
    """Write the test set as a checkpoint."""
    weights = minilm_matrices()
    drawn = iter(weights)
    return write(
        folder, {f"{n}.weight": m.shape for n, m in enumerate(weights)}, "F32", lambda _: next(drawn)
    )


def measure() -> Result:
    parts: list[Part] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for label, path in {"MiniLM": write_minilm(folder / "MiniLM"), **make_models()}.items():
            parts.append(sizes(label, Meter(path, folder)))
            parts.append(archives(label, Meter(round_to_bf16(path, folder / f"{label}-bf16"), folder)))
    return Result(
        name="report",
        claim="Three trained models take fewer bits than block formats leave them at equal error",
        command="python benchmarks/report.py",
        gates=tuple(gate for gates, _ in parts for gate in gates),
        figures={name: figure for _, figures in parts for name, figure in figures.items()},
    )


if __name__ == "__main__":
    main(measure)
