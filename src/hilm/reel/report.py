"""The meter: what every tensor of a reel costs and loses, and what other codecs make of the same tensor."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from hilm.errors import UsageError, VerificationError
from hilm.reel.block_formats import FORMATS
from hilm.reel.codecs import find_codecs
from hilm.reel.delta_base import BaseTensor
from hilm.reel.distortion import Distortion
from hilm.reel.threads import in_threads
from hilm.reel.words import as_floats, word_view
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hilm.reel.codecs import Codec
    from hilm.reel.decoder import Reel
    from hilm.reel.delta_base import Base
    from hilm.reel.schema import Error, Tensor

_Result = TypeVar("_Result")

PIECE = 1 << 22
"""Weights rounded at a time: a multiple of every block."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a codec makes of some weights.

    Attributes:
        weights: How many they are.
        bits: Bits per weight.
        error: What it loses; None where every bit is kept.
        gap: Bits above ½ log2(1 / NMSE), the least that independent Gaussian weights take (Shannon 1959);
            of a rounded difference, above that of the share of its energy which is lost. Below 0 where
            scales differ within a tensor: then the weights are no single Gaussian.
    """

    weights: int
    bits: float
    error: Error | None = None
    gap: float | None = None

    @classmethod
    def of(cls, weights: int, bits: float, error: Error | None = None) -> Self:
        """Work out the gap; there is none without a loss."""
        lost = error.get("energy_lost", error["nmse"]) if error else 0.0
        gap = bits - math.log2(1 / lost) / 2 if 0 < lost < math.inf else None
        return cls(weights, bits, error, gap)

    def document(self) -> dict[str, Any]:
        """The figures by name, as reports print them."""
        return {"weights": self.weights, "bits_per_weight": self.bits, **(self.error or {}), "gap": self.gap}


@dataclass(frozen=True, slots=True)
class Measured:
    """One tensor: its entry of the manifest, its own figures, and those of other codecs by name."""

    entry: Tensor
    own: Figures
    others: Mapping[str, Figures] = field(default_factory=dict)

    @property
    def rounded(self) -> bool:
        """Whether its weights are rounded."""
        return self.own.error is not None

    def document(self) -> dict[str, Any]:
        """Everything, as reports print it."""
        about = {key: self.entry[key] for key in ("name", "shape", "dtype", "coder")}
        return {**about, **_compare(self.own, self.others)}


def total(tensors: Iterable[Measured]) -> dict[str, Any] | None:
    """Figures of some tensors together, and of each codec that was tried on all of them; None of none.

    Errors are means by the number of weights; ``max_abs`` is the largest. The gap is that of the mean error;
    of differences, the mean of the gaps.
    """
    chosen = list(tensors)
    if not chosen:
        return None
    names = [name for name in chosen[0].others if all(name in tensor.others for tensor in chosen)]
    others = {name: _sum([tensor.others[name] for tensor in chosen]) for name in names}
    return {"tensors": len(chosen), **_compare(_sum([tensor.own for tensor in chosen]), others)}


def _compare(own: Figures, others: Mapping[str, Figures]) -> dict[str, Any]:
    """Figures and, beside those of others, the bits per weight saved, at equal error where there is one."""
    documents = {}
    for name, other in others.items():
        costs = [figures.bits if figures.error is None else figures.gap for figures in (other, own)]
        saved = None if costs[0] is None or costs[1] is None else costs[0] - costs[1]
        documents[name] = {**other.document(), "saved": saved}
    return {**own.document(), "others": documents}


def _sum(parts: list[Figures]) -> Figures:
    weights = sum(part.weights for part in parts)

    def mean(values: Iterable[float]) -> float:
        pairs = zip(parts, values, strict=True)
        return sum(part.weights * value for part, value in pairs) / weights

    bits = mean(part.bits for part in parts)
    errors = [part.error for part in parts if part.error is not None]
    if not errors:
        return Figures(weights, bits)
    error: Error = {
        "nmse": mean(e["nmse"] for e in errors),
        "max_abs": max(e["max_abs"] for e in errors),
        "cosine": mean(e["cosine"] for e in errors),
    }
    if all("energy_lost" in e for e in errors):  # of differences of very different sizes
        return Figures(weights, bits, error, mean(part.gap or 0.0 for part in parts))
    return Figures.of(weights, bits, error)


def measure_reel(
    reel: Reel,
    truth: Base | None = None,
    *,
    others: bool = True,
    tick: Callable[[str], None] = lambda _: None,
) -> tuple[list[Measured], dict[str, str]]:
    """Measure every stored tensor of a reel; aliases and tensors without elements are left out.

    Exact tensors are compressed as the reel gives them back. Rounded weights are rounded anew from what they
    were.

    Args:
        reel: An open reel of whole tensors; a delta stands on its base.
        truth: What the reel was made from; without it, rounded tensors have their own figures only.
        others: Whether other codecs are tried.
        tick: Called with the name of every tensor that is done.

    Returns:
        The tensors, and the codecs that are not installed, with the command which installs them.

    Raises:
        UsageError: The reel holds samples.
        VerificationError: The reel is damaged, or ``truth`` is another model.
    """
    if reel.mode == "sample":
        raise UsageError(
            f"{reel.name} holds samples: no tensor of it is coded", hint="hilm encode --mode small"
        )
    codecs, missing = find_codecs(delta=reel.mode == "delta")
    measured = []
    for entry in reel.tensors.values():
        weights = math.prod(entry["shape"])
        if entry.get("alias_of") is None and weights:
            own = Figures.of(weights, entry["bits"] / weights, entry.get("error"))
            tried: dict[str, Figures] = {}
            if others and own.error is None:
                tried = _compress(reel, entry, codecs)
            elif others and truth is not None and entry["coder"] != "tcq-delta":
                tried = _round(entry, truth)
            measured.append(Measured(entry, own, tried))
        tick(entry["name"])
    return measured, missing


def _at_once(jobs: list[Callable[[], _Result]]) -> list[_Result]:
    return in_threads(lambda job: job(), jobs, os.cpu_count() or 1)


def _compress(reel: Reel, entry: Tensor, codecs: Mapping[str, Codec]) -> dict[str, Figures]:
    """Compress an exact tensor with other codecs."""
    dtype, weights = DTYPES[entry["dtype"]], math.prod(entry["shape"])
    sizes, base = dict.fromkeys(codecs, 0), reel.base_tensor(entry["name"])
    for words in reel.pieces(entry["name"]):
        old = base.take(len(words)) if base else None
        found = _at_once([partial(codec, words, dtype, old) for codec in codecs.values()])
        for name, size in zip(codecs, found, strict=True):
            sizes[name] += min(size, len(words))
    return {name: Figures.of(weights, 8 * size / weights) for name, size in sizes.items()}


def _round(entry: Tensor, truth: Base) -> dict[str, Figures]:
    """Round what a tensor was made from to block formats."""
    dtype, weights = DTYPES[entry["dtype"]], math.prod(entry["shape"])
    source = BaseTensor(truth, entry["name"], entry["dtype"], entry["shape"])
    losses = {name: Distortion() for name in FORMATS}
    for start in range(0, weights, PIECE):
        count = min(PIECE, weights - start)
        view = word_view(dtype, 1, count)
        words = source.take(view.nbytes).view(view.word)
        values = as_floats(words, view).astype(np.float32, copy=False)
        rounded = _at_once([partial(f.round, values) for f in FORMATS.values()])
        for loss, found in zip(losses.values(), rounded, strict=True):
            loss.add(found.view(np.uint8), values.view(np.uint8), DTYPES["F32"])
    if source.sha256() != entry.get("sha256_source"):
        raise VerificationError(
            f"tensor {entry['name']} was made from another one than that of {truth.name}",
            hint="--against takes the model that was encoded",
        )
    blocks = {name: -(-weights // f.block) * f.block / weights for name, f in FORMATS.items()}
    return {
        name: Figures.of(weights, f.bits * blocks[name], losses[name].error) for name, f in FORMATS.items()
    }
