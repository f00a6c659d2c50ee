"""What can be run and compared: a torch module, a transformers model, a dump of an earlier run.

A runner says what it can do by ``capabilities``: ``inject`` (stages can be fed the reference's values) and
``cast`` (it runs in several number formats). A model is loaded by ``open`` and freed by ``close``.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hilm.errors import InputError, UsageError
from hilm.extras import require
from hilm.parity.audit import survey
from hilm.parity.inputs import grid_keys, read_arrays
from hilm.parity.taps import Pass, find_blocks, to_numpy, watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hilm.parity.audit import Survey
    from hilm.parity.inputs import Item
    from hilm.parity.metrics import Keys
    from hilm.parity.onnx_runner import OnnxRunner
    from hilm.parity.taps import Injection, Sink

    Prepared = tuple[tuple[Any, ...], dict[str, Any], Keys | None]
    Prepare = Callable[["Item", "nn.Module"], Prepared]
    Runner: TypeAlias = "TorchRunner | OnnxRunner | DumpRunner"

PREFIX = -1
"""``t`` of tokens in front of the patches, such as a class token."""

DTYPES = ("float64", "float32", "bfloat16", "float16")
STAGE = re.compile(r"embed|post|head|layer\.\d{1,6}(/\w{1,32})?")


@dataclass(slots=True)
class TorchRunner:
    """A torch module.

    Attributes:
        load: Makes the module; called whenever another number format is wanted.
        prepare: Makes its arguments, and token keys where its layout tells them, from an input.
        label: What reports call it.
        blocks: Path of its stack of blocks; the longest one when empty.
        device: Where it runs.
    """

    load: Callable[[], nn.Module]
    prepare: Prepare
    label: str
    blocks: str = ""
    device: str = "cpu"
    capabilities: frozenset[str] = frozenset({"inject", "cast"})
    model: Any = None
    _dtype: str = field(default="", repr=False)

    @property
    def dtype(self) -> str:
        """Number format of its parameters."""
        if not self._dtype:
            self._dtype = module_dtype(self.load() if self.model is None else self.model)
        return self._dtype

    def open(self, dtype: str, through: str | None = None) -> None:
        """Load the model in a number format, in eval mode."""
        torch = require("torch")
        self.model = None
        model = self.load()
        self._dtype = self._dtype or module_dtype(model)
        if through:
            model = model.to(getattr(torch, through))
        self.model = model.to(getattr(torch, dtype)).to(self.device).eval()

    def close(self) -> None:
        """Free the model."""
        self.model = None

    def run(self, item: Item, sink: Sink, inject: Injection | None = None, level: str = "block") -> None:
        """Run one input and send every stage as it fires."""
        torch = require("torch")
        args, kwargs, keys = self.prepare(item, self.model)
        mask = kwargs.get("attention_mask")
        find = partial(token_keys, item, None if mask is None else mask.cpu())
        pass_ = Pass(sink, find if keys is None else lambda _: keys, inject, level)
        _, blocks = find_blocks(self.model, self.blocks)
        with torch.no_grad(), watched(blocks, pass_):
            output = self.model(*args, **kwargs)
        pass_.finish(final_tensors(output))

    def hidden_state(self, item: Item, layer: int) -> NDArray[np.float32]:
        """One of the model's ``hidden_states`` of an input, as float32.

        Raises:
            UsageError: It has no such layer.
        """
        args, kwargs, _ = self.prepare(item, self.model)
        with require("torch").no_grad():
            states = self.model(*args, **kwargs, output_hidden_states=True).hidden_states
        if not -len(states) <= layer < len(states):
            raise UsageError(f"there are {len(states)} hidden states, none is {layer}", hint="--layer -2")
        return to_numpy(states[layer]).astype(np.float32)

    def survey(self) -> Survey:
        """Load it as it is stored and say what it holds."""
        model = self.load()
        self._dtype = module_dtype(model)
        return survey(model)


def module_dtype(model: nn.Module) -> str:
    """Name the number format of a module's first floating parameter."""
    found = (str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point())
    return next(found, "float32")


def final_tensors(output: Any) -> dict[str, Tensor]:  # noqa: ANN401 - whatever a module returns
    """Name what a model returned: ``post`` is its last hidden state, ``head`` its logits or pooled tokens."""
    torch = require("torch")
    if isinstance(output, tuple | list):
        output = {"head": next((part for part in output if torch.is_tensor(part)), None)}
    if torch.is_tensor(output):
        output = {"head": output}
    names = {"last_hidden_state": "post", "pooler_output": "head", "logits": "head", "head": "head"}
    return {stage: output[name] for name, stage in names.items() if output.get(name) is not None}


def token_keys(item: Item, mask: Tensor | NDArray[Any] | None, shape: tuple[int, ...]) -> Keys:
    """Make the keys (sample, t, y, x) of tokens ``(B, N, D)``, ``(N, D)`` or ``(B, h, w, D)``.

    Patches of a picture or of the frames of a clip have their places; tokens in front of them have t = -1
    and a number. Other tokens are numbered along x. Padding, where the mask is 0, has the sample -1.
    """
    batch, count = (1, shape[0]) if len(shape) == 2 else (shape[0], int(np.prod(shape[1:-1])))
    frames, rows, columns = item.grid
    if item.frames is not None and _holds_grid(batch, count, frames, rows * columns):
        tables = []
        for number in range(batch):
            patches = grid_keys(frames // batch, rows, columns, sample=0)
            patches[:, 1] += number * (frames // batch)
            front = np.zeros((count - len(patches), 4), np.int32)
            front[:, 1], front[:, 2], front[:, 3] = PREFIX, number, np.arange(len(front))
            tables += [front, patches]
        return np.concatenate(tables)
    keys = np.zeros((batch, count, 4), np.int32)
    keys[..., 0], keys[..., 3] = np.arange(batch)[:, None], np.arange(count)
    if mask is not None and tuple(mask.shape) == (batch, count):
        kept = np.asarray(mask) > 0
        keys[..., 3] = np.cumsum(kept, axis=1) - 1
        keys[~kept] = -1
    return keys.reshape(-1, 4)


def _holds_grid(batch: int, count: int, frames: int, patches: int) -> bool:
    return frames % batch == 0 and count >= patches * (frames // batch)


def prepare_module(item: Item, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any], Keys | None]:
    """Feed a transformers model: arrays by their names, pictures and frames as ``pixel_values``."""
    torch = require("torch")
    first = next(model.parameters())
    if item.frames is None:
        arrays = {name: torch.from_numpy(array) for name, array in item.arrays.items()}
    else:
        arrays = {"pixel_values": torch.from_numpy(item.pixels[0].transpose(1, 0, 2, 3).copy())}
    floats = {name: t.to(first.dtype) for name, t in arrays.items() if t.is_floating_point()}
    return (), {name: t.to(first.device) for name, t in {**arrays, **floats}.items()}, None


def module_runner(model: nn.Module, *, prepare: Prepare = prepare_module, label: str = "") -> TorchRunner:
    """Run a module that is in memory; it stays as it is, copies are cast."""
    return TorchRunner(lambda: copy.deepcopy(model), prepare, label or type(model).__name__)


@dataclass(slots=True)
class DumpRunner:
    """A run that was written to a folder: ``parity.json`` and one npz file per input."""

    folder: Path
    label: str
    capabilities: frozenset[str] = frozenset()

    @property
    def dtype(self) -> str:
        """Number format of the run."""
        try:
            return DTYPES[DTYPES.index(json.loads((self.folder / "parity.json").read_text("utf-8"))["dtype"])]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self.folder}: no dump of a run", hint="hilm parity dump writes one"
            ) from error

    def open(self, dtype: str, through: str | None = None) -> None:
        """Do nothing: a dump is what it is."""
        del dtype, through

    def close(self) -> None:
        """Do nothing."""

    def run(self, item: Item, sink: Sink, inject: Injection | None = None, level: str = "block") -> None:
        """Send what was stored of an input."""
        del inject, level
        stored = read_arrays(self.folder / f"{item.name}.npz")
        for name, rows in stored.items():
            if name.endswith("#out"):
                stage = name.removesuffix("#out")
                keys = stored.get(f"{stage}#keys")
                known = STAGE.fullmatch(stage) and rows.dtype.kind == "f" and rows.ndim == 2
                if not known or keys is None or keys.shape != (len(rows), 4):
                    raise InputError(f"{self.folder}: {item.name}.npz holds no tokens with keys at {stage}")
                sink(stage, rows, keys, stored.get(f"{stage}#in"))

    def survey(self) -> None:
        """Return None: a dump holds no weights."""


def write_dump(runner: Runner, items: list[Item], folder: Path) -> None:
    """Run inputs and write every stage, for a comparison elsewhere or later.

    Raises:
        UsageError: The folder holds a dump already.
    """
    if (folder / "parity.json").exists():
        raise UsageError(f"{folder} holds a dump already", hint="give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    runner.open(runner.dtype)
    for item in items:
        arrays: dict[str, Any] = {}

        def keep(stage: str, rows: Any, keys: Any, given: Any, arrays: dict[str, Any] = arrays) -> None:  # noqa: ANN401
            arrays[f"{stage}#out"], arrays[f"{stage}#keys"] = rows, keys
            if given is not None:
                arrays[f"{stage}#in"] = given

        runner.run(item, keep)
        np.savez(folder / f"{item.name}.npz", **arrays)
    (folder / "parity.json").write_text(json.dumps({"label": runner.label, "dtype": runner.dtype}), "utf-8")
    runner.close()
