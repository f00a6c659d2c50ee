"""The text that names one side of a comparison, and the runner it means."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hilm.errors import UsageError
from hilm.parity.encoders import encoder_runner
from hilm.parity.onnx_runner import OnnxRunner
from hilm.parity.runners import DumpRunner, TorchRunner, prepare_module

if TYPE_CHECKING:
    from hilm.parity.runners import Runner


def open_runner(spec: str, *, weights: str = "", blocks: str = "", device: str = "cpu") -> Runner:
    """Make the runner a text asks for; nothing is loaded yet.

    Args:
        spec: ``hf:PATH``, ``module:package.module:factory``, ``onnx:FILE``, ``npz:DIR``, or a bare path.
        weights: Weights an ``hf:`` side gets instead of its own.
        blocks: Path of the stack of blocks.
        device: Where torch runs.

    Raises:
        UsageError: The kind is not known, or takes no other weights.
        InputError: There is no such file.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in {"hf", "module", "onnx", "npz"}:
        path = Path(spec)
        dump = (path / "parity.json").exists()
        kind, rest = ("onnx" if path.suffix == ".onnx" else "npz" if dump else "hf"), spec
    if weights and kind != "hf":
        raise UsageError(f"{spec} takes no other weights", hint="only hf: sides do")
    if kind == "npz":
        return DumpRunner(Path(rest), spec)
    if kind == "onnx":
        return OnnxRunner(Path(rest), spec)
    if kind == "module":
        return _factory_runner(rest, spec, blocks, device)
    return encoder_runner(rest, weights=weights, blocks=blocks, device=device)


def _factory_runner(target: str, label: str, blocks: str, device: str) -> TorchRunner:
    module, _, name = target.partition(":")
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{label}: {error}", hint="module:package.module:factory") from error
    made, adapter = factory()
    prepare = prepare_module if adapter is None else lambda item, _: adapter.prepare(item)
    return TorchRunner(lambda: copy.deepcopy(made), prepare, label, blocks, device)
