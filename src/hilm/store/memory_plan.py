"""What it takes to train and to serve a model, from its headers and ``config.json``: no weights are read.

N parameters, of which M in linear layers, are trained as T; L blocks, width d, B sequences of s tokens.

=============  ========================================================================================
bytes          formula
=============  ========================================================================================
weights        full 4N, masters of mixed precision too; LoRA: the base as stored + 4T; QLoRA: the linear
               layers as NF4 (half a byte each and a float32 scale per 64), the rest as stored, + 4T
gradients      4T
optimizer      AdamW: 8T, and a step count of 4 per trained tensor
trainable      full N; LoRA of rank r: r (rows + columns) of every targeted matrix
activations    B s (L c + 12 V), estimated; c by `_layer_bytes`; with checkpointing B s (L 2d + c + 12 V),
               4d in 32 bits; a 16-bit copy of the linear layers (QLoRA: of the largest) beside that
total          weights + optimizer + the larger of gradients and activations: the former grow while the
               latter are given back. Accumulated over several batches, gradients stay: add them
KV cache       2 · L · heads of keys · head size · bytes of a value, per token and sequence
=============  ========================================================================================

NF4: Dettmers et al., 2023, arXiv 2305.14314, without double quantisation. LoRA: Hu et al., 2021, arXiv
2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hilm.errors import UsageError
from hilm.store.architecture import Architecture, read_architecture
from hilm.weights import open_checkpoint
from hilm.weights.roles import resolve_layer_types

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from os import PathLike

    from hilm.weights import TensorInfo

SPARE = 1.2
"""What to have for every byte of an estimated total."""

NF4_BLOCK = 64
_LINEAR = {"attention", "mlp", "other"}
_NOT_LINEAR = {"bias", "scale", "buffer", "conv"}
_STATE, _STEP = 8, 4  # bytes of AdamW: two float32 moments a value, a step count a tensor


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters of a checkpoint, as headers tell them.

    Attributes:
        tensors: All of them, each storage once, buffers left out.
        linear: Those in matrices of linear layers, outside of embedding and output.
    """

    tensors: tuple[TensorInfo, ...]
    linear: tuple[TensorInfo, ...]

    @classmethod
    def of(cls, tensors: Iterable[TensorInfo]) -> Parameters:
        """Take what is trained out of all stored tensors."""
        own = tuple(t for t in tensors if t.is_weight and t.alias_of is None and t.role.kind != "buffer")
        return cls(own, tuple(t for t in own if _is_linear(t)))

    @property
    def count(self) -> int:
        """N."""
        return sum(t.numel for t in self.tensors)

    @property
    def roles(self) -> dict[str, int]:
        """How many have which role."""
        types = dict.fromkeys(t.role.type for t in self.tensors)
        return {kind: sum(t.numel for t in self.tensors if t.role.type == kind) for kind in types}

    @property
    def stored(self) -> int:
        """Bytes of all as they are stored."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def bits(self) -> int:
        """Bits to compute in: 32 if most values are stored in that many, else 16."""
        plain = (t for t in self.tensors if t.packed is None and t.type.kind == "float")
        wide = sum(t.numel for t in plain if t.type.bits >= 32)
        return 32 if 2 * wide > self.count else 16

    @property
    def gated(self) -> bool:
        """Whether a feed-forward part multiplies with a gate."""
        return any(t.role.type == "mlp" and t.role.kind in {"gate", "gate_up"} for t in self.linear)

    def adapter(self, layer_types: Collection[str], rank: int) -> tuple[int, int]:
        """Values and tensors of a LoRA of the linear layers of these types; routers are left alone."""
        adapted = [t for t in self.linear if t.role.type in layer_types and t.role.kind != "router"]
        sides = (count * (rows + columns) for count, rows, columns in (t.matrices for t in adapted))
        return rank * sum(sides), 2 * len(adapted)

    def quantise(self, bytes_of: Callable[[TensorInfo], int], *, rest: int | None = None) -> int:
        """Bytes with linear layers quantised; other values of so many bytes, or as stored."""
        linear = {t.name for t in self.linear}
        others = (t for t in self.tensors if t.name not in linear)
        kept = sum(t.nbytes if rest is None else rest * t.numel for t in others)
        return kept + sum(map(bytes_of, self.linear))


def _is_linear(info: TensorInfo) -> bool:
    matrix = len(info.shape) == 2 or info.matrices[0] > 1
    return matrix and info.role.type in _LINEAR and info.role.kind not in _NOT_LINEAR


def nf4_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor as NF4: two values a byte, and a float32 scale for every 64 values."""
    return -(-info.numel // 2) + 4 * -(-info.numel // NF4_BLOCK)


def int8_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor as 8-bit integers with a float32 scale for every row."""
    count, rows, _ = info.matrices
    return info.numel + 4 * count * rows


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step sees.

    Attributes:
        size: Sequences.
        length: Tokens of each.
        checkpointing: Whether activations within blocks are computed again instead of kept.
    """

    size: int
    length: int
    checkpointing: bool

    def activations(self, sizes: Architecture, bits: int, *, gated: bool) -> int:
        """Bytes kept for the backward pass, estimated: attention is fused, and keeps no scores."""
        block = _layer_bytes(sizes, bits, gated=gated)
        kept = sizes.layers * sizes.width * bits // 8 + block if self.checkpointing else sizes.layers * block
        return self.size * self.length * (kept + 12 * sizes.vocabulary)


def _layer_bytes(sizes: Architecture, bits: int, *, gated: bool) -> int:
    """Bytes that one block keeps per token.

    Counted with torch 2.13 and transformers 5.23 (GPT-2, Llama, BERT in training mode, without dropout in
    attention): 40 for each value of the residual stream, 44 under bf16 autocast, as norms and sums stay
    float32; and for each inner value 4 for every array that the feed-forward part keeps: input and output of
    the activation, two more if gated, three more where a tanh GELU is spelled out; 0.6 of that in 16 bits.
    """
    arrays = 4 if gated else 5 if sizes.activation in {"gelu_new", "gelu_fast"} else 2
    if bits == 32:
        return 40 * sizes.width + 4 * arrays * sizes.inner
    return 44 * sizes.width + 12 * arrays * sizes.inner // 5


def plan(
    model: str | PathLike[str],
    *,
    batch: int = 1,
    sequence: int = 1024,
    rank: int = 16,
    targets: Sequence[str] = ("attention", "mlp"),
    checkpointing: bool = False,
    adapter: tuple[int, int] | None = None,
    bits: int = 16,
) -> dict[str, Any]:
    """Say what memory training and serving a model take; no weights are read.

    Args:
        model: A folder, a weight file or an index file; a Hub id, ``hf://`` address or URL.
        batch: Sequences of a step.
        sequence: Tokens of each.
        rank: Of LoRA.
        targets: Layer types whose matrices LoRA adapts.
        checkpointing: Whether activations are computed again instead of kept.
        adapter: Values and tensors trained beside a frozen base, instead of LoRA's of this rank.
        bits: What a quantised base computes in, 16 or 32.

    Returns:
        ``model``; exact: ``parameters``, ``roles`` (parameters of each), ``stored_bytes``; ``assumptions``
        (the arguments); ``training``: per method ``trainable`` parameters, bytes of ``weights``,
        ``gradients`` and ``optimizer``, all exact, of ``activations``, ``total`` and ``safe`` (20 % more),
        all estimated and None without a configuration; ``serving``: per precision exact bytes of ``weights``
        and of the ``kv_cache`` for 1,000 tokens of every sequence, None for a model without one;
        ``estimated`` (the fields that are); ``notes``.

    Raises:
        InputError: There is no checkpoint, or it is damaged.
        UnknownLayerType: A target is no layer type.
        UsageError: A size below 1.
    """
    if min(batch, sequence, rank) < 1:
        raise UsageError(f"batch {batch}, sequence {sequence}, rank {rank}: each is at least 1")
    layer_types = resolve_layer_types(targets)
    with open_checkpoint(model) as checkpoint:
        parameters = Parameters.of(checkpoint.tensors.values())
        sizes, name = read_architecture(checkpoint.config), checkpoint.name
    step = Batch(batch, sequence, checkpointing)
    return {
        "model": name,
        "parameters": parameters.count,
        "roles": parameters.roles,
        "stored_bytes": parameters.stored,
        "assumptions": {
            "batch": batch,
            "sequence": sequence,
            "checkpointing": checkpointing,
            "rank": rank,
            "targets": sorted(layer_types),
        },
        "training": _train(parameters, adapter or parameters.adapter(layer_types, rank), sizes, step, bits),
        "serving": _serve(parameters, sizes.cache * 1000 * batch if sizes and sizes.cache else None),
        "estimated": ["activations", "total", "safe"],
        "notes": [] if sizes else ["no config.json that states layers and width: activations are unknown"],
    }


def _train(
    parameters: Parameters, adapter: tuple[int, int], sizes: Architecture | None, step: Batch, width: int
) -> list[dict[str, Any]]:
    """Rows of the ways to train; ``adapter``: values and tensors of LoRA; ``width``: bits of QLoRA."""
    count, everything = parameters.count, (parameters.count, len(parameters.tensors))
    copies = [2 * t.numel for t in parameters.linear]  # in 16 bits: all at once, or one at a time
    kept = {
        bits: None if sizes is None else step.activations(sizes, bits, gated=parameters.gated)
        for bits in (16, 32)
    }
    largest = width * max(copies, default=0) // 16
    nf4, int8 = parameters.quantise(nf4_bytes), parameters.quantise(int8_bytes)
    rows = (
        ("full fp32", everything, 4 * count, kept[32], 0),
        ("full bf16 mixed", everything, 4 * count, kept[16], sum(copies)),
        ("lora", adapter, parameters.stored + 4 * adapter[0], kept[parameters.bits], 0),
        ("qlora nf4", adapter, nf4 + 4 * adapter[0], kept[width], largest),
        ("qlora int8", adapter, int8 + 4 * adapter[0], kept[width], largest),
    )
    return [
        _row(method, trained, weights, None if activations is None else activations + beside)
        for method, trained, weights, activations, beside in rows
    ]


def _row(method: str, trained: tuple[int, int], weights: int, activations: int | None) -> dict[str, Any]:
    values, tensors = trained
    gradients, optimizer = 4 * values, _STATE * values + _STEP * tensors
    total = None if activations is None else weights + optimizer + max(gradients, activations)
    return {
        "method": method,
        "trainable": values,
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activations,
        "total": total,
        "safe": None if total is None else round(SPARE * total),
    }


def _serve(parameters: Parameters, cached: int | None) -> list[dict[str, Any]]:
    """Rows of the precisions to serve in; ``cached``: values of the cache for 1,000 tokens."""
    rows = (
        ("as stored", parameters.stored, parameters.bits // 8),
        ("fp32", 4 * parameters.count, 4),
        ("bf16", 2 * parameters.count, 2),
        ("int8", parameters.quantise(int8_bytes, rest=2), 2),
        ("4-bit", parameters.quantise(nf4_bytes, rest=2), 2),
    )
    return [
        {"precision": name, "weights": weights, "kv_cache": None if cached is None else cached * size}
        for name, weights, size in rows
    ]
