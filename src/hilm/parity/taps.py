"""Named places of a model: the blocks of its longest stack, and the norms, attention and MLP in each.

Stages in forward order: ``embed`` (input of the first block), ``layer.i/norm1``, ``layer.i/attn``,
``layer.i/norm2``, ``layer.i/mlp``, ``layer.i``, ``post`` (last hidden state), ``head`` (logits or pooled).
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import InputError
from hilm.extras import require
from hilm.parity.metrics import align

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hilm.parity.metrics import Keys, Rows

    # Takes a stage as it fires: its output and first input as rows [N, D] with keys [N, 4].
    Sink = Callable[[str, Rows, Keys, Rows | None], None]
    # Returns what the reference had as "in" or "out" of a stage, to be fed instead of one's own.
    Injection = Callable[[str, str], tuple[Rows, Keys] | None]


@dataclass(slots=True)
class Pass:
    """One forward pass that is watched.

    Attributes:
        sink: Takes every stage.
        find_keys: Makes token keys from the shape of the first block's input.
        inject: Feeds stages what the reference was fed; None lets errors accumulate.
        level: What is fed: ``block`` or, finer, ``sub``.
        keys: Token keys, from the first block on.
    """

    sink: Sink
    find_keys: Callable[[tuple[int, ...]], Keys]
    inject: Injection | None = None
    level: str = "block"
    keys: Keys | None = None
    given: dict[str, Rows] = field(default_factory=dict)

    def enter(self, stage: str, tensor: Tensor, *, feed: bool) -> Tensor:
        """Look at a stage's first tensor and return what it shall get instead."""
        if self.keys is None:
            self.keys = self.find_keys(tuple(tensor.shape))
            self._send("embed", tensor)
        new = self._replace(stage, "in", tensor) if feed else tensor
        rows = as_rows(to_numpy(new), self.keys)
        if rows is not None:
            self.given[stage] = rows
        return new

    def leave(self, stage: str, tensor: Tensor, *, last: bool) -> Tensor:
        """Look at a stage's output and return what the model shall go on with."""
        self._send(stage, tensor)
        return self._replace(stage, "out", tensor) if last else tensor

    def _send(self, stage: str, tensor: Tensor) -> None:
        rows = None if self.keys is None else as_rows(to_numpy(tensor), self.keys)
        if rows is not None and self.keys is not None:
            self.sink(stage, rows, self.keys, self.given.pop(stage, None))

    def finish(self, outputs: dict[str, Tensor]) -> None:
        """Hand over what the model returned."""
        for stage, tensor in outputs.items():
            values = to_numpy(tensor)
            rows = None if self.keys is None else as_rows(values, self.keys)
            if rows is not None and self.keys is not None:
                self.sink(stage, rows, self.keys, None)
            else:
                self.sink(stage, *loose_rows(values), None)

    def _replace(self, stage: str, side: str, tensor: Tensor) -> Tensor:
        found = self.inject(stage, side) if self.inject else None
        if found is None or self.keys is None:
            return tensor
        new = require("torch").from_numpy(fed(found, to_numpy(tensor), self.keys))
        replaced: Tensor = new.to(tensor.dtype).to(tensor.device)
        return replaced


def fed(found: tuple[Rows, Keys] | None, own: NDArray[Any], keys: Keys) -> NDArray[Any]:
    """Put the reference's rows in the place of one's own; padding, and what does not align, stays."""
    rows = as_rows(own, keys)
    if found is None or rows is None or rows.shape[1:] != found[0].shape[1:]:
        return own
    theirs, ours, problem = align(found[1], keys)
    if problem:
        return own
    rows = rows.copy()
    rows[ours] = found[0][theirs]
    return from_rows(rows, own.shape)


def find_blocks(model: nn.Module, path: str = "") -> tuple[str, list[nn.Module]]:
    """Find the longest ``ModuleList`` or ``Sequential`` whose members share a class, or the one at ``path``.

    Raises:
        InputError: There is none.
    """
    nn_ = require("torch").nn
    stacks = [
        (name, list(module))
        for name, module in model.named_modules()
        if isinstance(module, nn_.ModuleList | nn_.Sequential)
        and (name == path if path else len({type(member) for member in module}) == 1)
    ]
    if not stacks:
        raise InputError(f"no stack of layers{' at ' + path if path else ''} in {type(model).__name__}")
    return max(stacks, key=lambda stack: len(stack[1]))


def part_name(layer: int, name: str, kind: str, seen: Counter[str]) -> str:
    """Name a part of a block by what it does and how many of its kind ran before: ``layer.3/norm2``.

    Args:
        layer: Number of the block.
        name: Its name in the block.
        kind: Its class.
        seen: Parts of the block that ran before; counted up.
    """
    text = f"{name} {kind}".lower()
    attention = "attn" in text or "attention" in text
    role = "norm" if "norm" in text or name.startswith("ln") else "attn" if attention else "mlp"
    seen[role] += 1
    return f"layer.{layer}/{role}{seen[role] if role == 'norm' or seen[role] > 1 else ''}"


@contextmanager
def watched(blocks: list[nn.Module], pass_: Pass) -> Iterator[None]:
    """Send every block and part of a block to a pass while the model runs."""
    handles: list[Any] = []
    fed, last = pass_.inject is not None, len(blocks) - 1

    def watch(module: nn.Module, name: Callable[[], str], *, feed: bool, final: bool) -> None:
        stage: list[str] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - torch's hooks
            stage.append(name())
            words: dict[int | str, Any] = dict(enumerate(args)) | kwargs
            key = first_tensor(words)
            if key is not None:
                words[key] = pass_.enter(stage[-1], words[key], feed=feed)
            return tuple(words[n] for n in range(len(args))), {name: words[name] for name in kwargs}

        def after(_: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401 - torch's hooks
            tensor = output[0] if isinstance(output, tuple | list) else output
            new = pass_.leave(stage.pop(), tensor, last=final)
            return (new, *output[1:]) if isinstance(output, tuple | list) else new

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    for index, block in enumerate(blocks):
        seen = Counter[str]()
        watch(block, partial(_begin, index, seen), feed=fed, final=fed and index == last)
        for name, part in block.named_children():
            if any(True for _ in part.parameters()):
                called = partial(part_name, index, name, type(part).__name__, seen)
                watch(part, called, feed=fed and pass_.level == "sub", final=False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _begin(layer: int, seen: Counter[str]) -> str:
    seen.clear()
    return f"layer.{layer}"


def first_tensor(words: dict[int | str, Any]) -> int | str | None:
    """Find the first floating tensor among the arguments of a call."""
    torch = require("torch")
    floats = (key for key, value in words.items() if torch.is_tensor(value) and value.is_floating_point())
    return next(floats, None)


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor out of torch; 16-bit floats become float32."""
    torch = require("torch")
    tensor = tensor.detach()
    wide = tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.float()
    return np.array(wide.cpu().numpy())


def as_rows(values: NDArray[Any], keys: Keys) -> Rows | None:
    """Lay tokens out as ``[N, D]``: from ``(B, N, D)``, ``(N, D)``, ``(B, h, w, D)`` or ``(B, D, h, w)``."""
    if values.ndim > 1 and values.size == len(keys) * values.shape[-1]:
        return values.reshape(-1, values.shape[-1])
    if values.ndim == 4 and values.size == len(keys) * values.shape[1]:
        return values.transpose(0, 2, 3, 1).reshape(len(keys), -1)
    return None


def from_rows(rows: Rows, shape: tuple[int, ...]) -> NDArray[Any]:
    """Undo :func:`as_rows`."""
    if rows.shape[1] == shape[-1]:
        return rows.reshape(shape)
    batch, width, height, columns = shape
    return np.ascontiguousarray(rows.reshape(batch, height, columns, width).transpose(0, 3, 1, 2))


def loose_rows(values: NDArray[Any]) -> tuple[Rows, Keys]:
    """Lay out what is not per token: a row per sample, or per leading index."""
    flat = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    keys = np.zeros((len(flat), 4), np.int32)
    keys[:, 0] = np.arange(len(flat)) // max(1, len(flat) // values.shape[0]) if values.ndim > 1 else 0
    keys[:, 3] = np.arange(len(flat))
    return flat, keys
