"""Encode a fine-tune as its differences from a base."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hilm.reel.delta import plan_delta
from hilm.reel.delta_base import BaseTensor, depth_on
from hilm.reel.encoder import EncodeReport, write_reel
from hilm.reel.manifest import DELTA_CODERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hilm.reel.delta_base import Base
    from hilm.reel.plan import Plan, Planner, Words
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
    preview: bool = True,
    sinks: Sequence[Callable[[Block], None]] = (),
    threads: int | None = None,
) -> EncodeReport:
    """Write a reel from which every byte of the checkpoint's files comes back, given the base.

    Args:
        checkpoint: An open checkpoint.
        out: Name of the reel.
        base: Tensors of the same name, element type and shape are coded as differences from it.
        content_key: Key of the base's files, 32 bytes, by which a store finds it.
        preview: Draw the front video, one frame per tensor.
        sinks: Called with every block of the same pass.
        threads: Chunks coded at a time; all cores by default. The bytes do not depend on it.

    Raises:
        UsageError: Too many deltas stand on each other.
        StorageError: The reel cannot be written; nothing appears under its name.
        SourceChanged: A file changed while it was read.
    """
    differences = _Differences(base, content_key)
    report = write_reel(
        checkpoint, out, "delta", {}, differences.choose, preview, sinks, threads, differences.pin
    )
    return replace(report, unpaired=tuple(differences.unpaired))


class _Differences:
    """Plans the slabs of one tensor after another as differences from a base.

    Args:
        base: What to take differences from.
        content_key: Key of the base's files, 32 bytes, by which a store finds it.

    Attributes:
        unpaired: Tensors the base does not have, by name, element type and shape.
    """

    def __init__(self, base: Base, content_key: bytes | None) -> None:
        self._depth = depth_on(base)
        self.unpaired: list[str] = []
        self._base, self._content_key = base, content_key
        self._hashes: dict[str, str] = {}
        self._open: tuple[str, BaseTensor] | None = None

    def choose(self, info: TensorInfo) -> Planner | None:
        """Make the planner of a tensor, which is to be given every slab of it; None if it is unpaired."""
        self._close()
        if self._base.describe(info.name) != (info.dtype, info.shape):
            self.unpaired.append(info.name)
            return None
        tensor = BaseTensor(self._base, info.name, info.dtype, info.shape)
        self._open = info.name, tensor
        return partial(_plan, tensor)

    def pin(self, tensors: Sequence[Tensor]) -> Pinned:
        """Describe the base for the manifest, given the entries of all tensors."""
        self._close()
        used = {t["name"] for t in tensors if t["coder"] in DELTA_CODERS}
        pinned: Pinned = {
            "depth": self._depth,
            "digest": self._base.digest(),
            "hint": self._base.name,
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


def _plan(tensor: BaseTensor, words: Words, view: WordView, threads: int) -> Plan | None:  # noqa: ARG001 - Planner
    return plan_delta(words, tensor.take(words.nbytes).view(view.word), view)
