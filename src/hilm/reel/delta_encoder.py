"""Encode a fine-tune as its differences from a base."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from hilm.errors import UsageError
from hilm.reel.delta import plan_delta
from hilm.reel.delta_base import BaseTensor, depth_on
from hilm.reel.delta_rounding import MOST_LOST, Energy, delta_quantizer, plan_rounded_delta
from hilm.reel.encoder import EncodeReport, write_reel
from hilm.reel.manifest import DELTA_CODERS
from hilm.reel.quantizer import LAMBDA
from hilm.reel.rate import Rounding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hilm.reel.delta_base import Base
    from hilm.reel.plan import Plan, Planner, Words
    from hilm.reel.quantizer import Quantizer
    from hilm.reel.schema import Pinned, Tensor
    from hilm.reel.words import WordView
    from hilm.weights.blocks import Block
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo


def encode_delta(
    checkpoint: Checkpoint,
    out: Path,
    base: Base,
    *,
    content_key: bytes | None = None,
    bits: float | None = None,
    force: bool = False,
    preview: bool = True,
    sinks: Sequence[Callable[[Block], None]] = (),
    threads: int | None = None,
) -> EncodeReport:
    """Write a reel from which, given the base, every byte of the checkpoint's files comes back.

    Args:
        checkpoint: An open checkpoint.
        out: Name of the reel.
        base: Tensors of the same name, element type and shape are coded as differences from it.
        content_key: Key of the base's files, 32 bytes, by which a store finds it.
        bits: Round the differences of matrices to about so many bits per weight; None keeps every bit.
        force: Write it even if rounding loses more than half of the energy of the differences.
        preview: Draw the front video, one frame per tensor.
        sinks: Called with every block of the same pass.
        threads: Chunks coded at a time; all cores by default. The bytes do not depend on it.

    Raises:
        UsageError: Too many deltas stand on each other, or too much of the differences is lost.
        StorageError: The reel cannot be written; nothing appears under its name.
        SourceChanged: A file changed while it was read.
    """
    quantizer = None if bits is None else delta_quantizer(bits)
    settings = {"st": quantizer.step, "lambda": LAMBDA, "force": force} if quantizer else {}
    differences = Differences(base, content_key, quantizer, MOST_LOST if not force else math.inf)
    report = write_reel(
        checkpoint, out, "delta", settings, differences.choose, preview, sinks, threads, differences
    )
    return replace(report, unpaired=tuple(differences.unpaired), energy_lost=differences.energy.share)


class Differences:
    """Plans the slabs of one tensor after another as differences from a base.

    Args:
        base: What to take differences from.
        content_key: Key of the base's files, 32 bytes, by which a store finds it.
        quantizer: Rounds the differences of matrices; None keeps every bit.
        most_lost: Share of their energy that may be lost.

    Attributes:
        base: As given.
        unpaired: Tensors the base does not have, by name, element type and shape.
        energy: Of all differences that were rounded.
    """

    def __init__(
        self, base: Base, content_key: bytes | None, quantizer: Quantizer | None, most_lost: float
    ) -> None:
        self._depth = depth_on(base)
        self.unpaired: list[str] = []
        self.energy, self._energies = Energy(), dict[str, Energy]()
        self._quantizer, self._most_lost = quantizer, most_lost
        self.base, self._content_key = base, content_key
        self._hashes: dict[str, str] = {}
        self._open: tuple[str, BaseTensor] | None = None

    @property
    def state(self) -> list[object]:
        """What the bytes of a reel depend on."""
        return [self.base.name, self._depth, self.base.state, self._content_key and self._content_key.hex()]

    def choose(self, info: TensorInfo) -> Planner | None:
        """Make the planner of a tensor; None if it is unpaired."""
        self._close()
        if self.base.describe(info.name) != (info.dtype, info.shape):
            self.unpaired.append(info.name)
            return None
        self._open = info.name, BaseTensor(self.base, info.name, info.dtype, info.shape)
        if self._quantizer is not None and info.dtype != "F64" and Rounding().applies(info):
            self._energies[info.name] = Energy()
        return self._plan

    def advance(self, size: int) -> NDArray[np.uint8] | None:
        """Go on to the next slab of the tensor: the base's bytes of it, which stay; None if it is unpaired.

        Every slab begins with this, also one that an interrupted run has written.
        """
        self._slab = self._open[1].take(size) if self._open else None
        return self._slab

    def measure(self, words: NDArray[np.uint8], decoded: NDArray[np.uint8], view: WordView) -> None:
        """Take note of what rounding made of the slab."""
        if self._open and self._slab is not None:
            new, old, back = (part.view(view.word) for part in (words, self._slab, decoded))
            self._energies[self._open[0]].add(new, old, back, view)

    def pin(self, tensors: Sequence[Tensor]) -> Pinned:
        """Describe the base for the manifest, given the entries of all tensors.

        Raises:
            UsageError: Too much of the differences is lost.
        """
        self._close()
        self._settle(tensors)
        used = {t["name"] for t in tensors if t["coder"] in DELTA_CODERS}
        pinned: Pinned = {
            "depth": self._depth,
            "digest": self.base.digest(),
            "hint": self.base.name,
            "tensors": {name: digest for name, digest in self._hashes.items() if name in used},
        }
        if self._content_key is not None:
            pinned["content_key"] = self._content_key.hex()
        return pinned

    def _close(self) -> None:
        """Keep the digest of the tensor that has been coded, and nothing else of it."""
        if self._open is not None:
            name, tensor = self._open
            self._hashes[name], self._open = tensor.sha256(), None

    def _plan(self, words: Words, view: WordView, threads: int) -> Plan | None:
        if self._open is None or self._slab is None:
            return None
        base, plan = self._slab.view(view.word), None
        if self._quantizer is not None and self._open[0] in self._energies:
            plan = plan_rounded_delta(words, base, view, self._quantizer, threads)
        return plan or plan_delta(words, base, view, threads)

    def _settle(self, tensors: Sequence[Tensor]) -> None:
        """Say in the entries what of the differences is lost."""
        for tensor in tensors:
            if "error" in tensor:
                energy = self._energies[tensor.get("alias_of") or tensor["name"]]
                tensor["error"]["energy_lost"] = energy.share
                self.energy.lost += energy.lost
                self.energy.whole += energy.whole
        if self.energy.share > self._most_lost:
            raise UsageError(
                f"{self.energy.share:.0%} of the energy of the difference would be lost",
                hint="ask for more bits; --force makes it nevertheless",
            )
