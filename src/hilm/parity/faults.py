"""Faults that ports are known to have, planted in one block of a torch model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from hilm.parity.inputs import Item
    from hilm.parity.runners import Prepare, Prepared

    Plant = Callable[[nn.Module], bool]
    Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong that can be planted in one block.

    Attributes:
        name: What is wrong.
        part: Part of the block that must be named.
        plant: Changes a block in place; False where the block has nothing to change.
        precisions: Formats in which it must be caught.
    """

    name: str
    part: str
    plant: Plant
    precisions: tuple[str, ...] = ("float32", "bfloat16")


def linears(block: nn.Module, *words: str) -> list[Any]:
    """Linear layers of a block whose path contains one of the words."""
    kind = require("torch").nn.Linear
    return [m for n, m in block.named_modules() if isinstance(m, kind) and any(w in n.lower() for w in words)]


QUERY, KEY, VALUE = ("q_proj", "query", "to_q"), ("k_proj", "key", "to_k"), ("v_proj", "value", "to_v")
OUT = ("out_proj", "o_proj", "attention.output.dense", "attn.proj", "to_out")
DOWN = ("fc2", "down_proj", "output.dense", "c_proj", "lin2")


def _swap(left: Sequence[str], right: Sequence[str], block: nn.Module) -> bool:
    a, b = linears(block, *left), linears(block, *right)
    if not a or not b or a[0].weight.shape != b[0].weight.shape:
        return False
    for x, y in zip(a[0].parameters(), b[0].parameters(), strict=True):
        kept = x.data.clone()
        x.data.copy_(y.data)
        y.data.copy_(kept)
    return True


def _scale(words: Sequence[str], factor: float, block: nn.Module) -> bool:
    found = linears(block, *words)
    for layer in found[:1]:
        layer.weight.data *= factor
    return bool(found)


def _zero_head(block: nn.Module) -> bool:
    found = linears(block, *OUT)
    counts = [
        getattr(holder, name, None)
        for module in block.modules()
        for holder in (module, getattr(module, "config", None))
        for name in ("num_heads", "num_attention_heads")
    ]
    heads = next((count for count in counts if isinstance(count, int)), 0)
    if not found or not heads:
        return False
    found[0].weight.data[:, : found[0].in_features // heads] = 0
    return True


def _shift_bias(block: nn.Module) -> bool:
    found = [layer for layer in linears(block, *DOWN) if layer.bias is not None]
    for layer in found[-1:]:
        layer.bias.data[0] += 0.5
    return bool(found)


def norms(block: nn.Module) -> list[Any]:
    """Norm layers of a block in the order they are registered."""
    return [
        m
        for n, m in block.named_children()
        if "norm" in f"{n}{type(m).__name__}".lower() or n.startswith("ln")
    ]


def _scale_norm(block: nn.Module) -> bool:
    found = norms(block)
    for norm in found[:1]:
        norm.weight.data *= 1.02
    return bool(found)


def _loosen_norm(block: nn.Module) -> bool:
    found = norms(block)
    for norm in found[:1]:
        name = "eps" if hasattr(norm, "eps") else "variance_epsilon"
        setattr(norm, name, max(10 * getattr(norm, name), 1e-5))
    return bool(found)


def _approximate(block: nn.Module) -> bool:
    nn_ = require("torch").nn
    for module in block.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "GELUActivation" or (
                isinstance(child, nn_.GELU) and child.approximate == "none"
            ):
                setattr(module, name, nn_.GELU(approximate="tanh"))
                return True
    return False


def _replace_token(block: nn.Module) -> bool:
    def replaced(_: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401 - torch's hooks
        tokens = output[0] if isinstance(output, tuple) else output
        tokens[..., 3, :] = tokens[..., 4, :]
        return output

    block.register_forward_hook(replaced)
    return True


def misplaced(prepare: Prepare, change: Change, item: Item, model: nn.Module) -> Prepared:
    """Prepare an input of an encoder of the pair, and give its patches other slots, rows and columns."""
    torch = require("torch")
    args, words, keys = prepare(item, model)
    places = torch.from_numpy(item.keys()[:, 1:]).long()
    places[:, 0] = torch.tensor(item.slots)[places[:, 0]]
    changed = change(places)
    return args, {**words, "patch_positions": changed if "grid_thw" in words else changed[None]}, keys


def _consecutive(places: Tensor) -> Tensor:
    places[:, 0] = places[:, 0].unique(return_inverse=True)[1]
    return places


def _one_slot_off(places: Tensor) -> Tensor:
    last = places[:, 0].max()
    places[:, 0] -= ((places[:, 0] == last) & (last > 0)).long()
    return places


PLACES: dict[str, Change] = {
    "no rotary embedding": lambda places: places * 0,
    "rows and columns swapped": lambda places: places[:, [0, 2, 1]],
    "slots 0 to T-1": _consecutive,
    "one slot off by one": _one_slot_off,
}
"""Faults of where patches stand; every layer has them, so attention of the first must be named."""

FAULTS = (
    Fault("q and k swapped", "attn", partial(_swap, QUERY, KEY)),
    Fault("k and v swapped", "attn", partial(_swap, KEY, VALUE)),
    Fault("output projection zero", "attn", partial(_scale, OUT, 0.0)),
    Fault("one head zeroed", "attn", _zero_head),
    Fault("one bias of the MLP +0.5", "mlp", _shift_bias),
    Fault("output projection x 1.02", "attn", partial(_scale, OUT, 1.02)),
    Fault("norm weight x 1.02", "norm1", _scale_norm),
    Fault("output projection x 1.005", "attn", partial(_scale, OUT, 1.005), ("float32",)),
    Fault("a token replaced by its neighbour", "wiring", _replace_token, ("float32",)),
    Fault("GELU tanh for erf", "mlp", _approximate, ("float32",)),
    Fault("norm eps x 10", "norm1", _loosen_norm, ("float32",)),
)
