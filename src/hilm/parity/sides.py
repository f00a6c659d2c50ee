"""The text that names one side of a comparison, and the runner it means."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hilm.errors import InputError, UsageError
from hilm.parity.encoders import encoder_runner
from hilm.parity.onnx_runner import OnnxRunner
from hilm.parity.runners import DumpRunner, TorchRunner, prepare_module

if TYPE_CHECKING:
    from hilm.parity.runners import Runner

KINDS = ("hf", "module", "onnx", "npz")


@dataclass(frozen=True, slots=True)
class Side:
    """One side, not loaded yet.

    Attributes:
        spec: The text.
        kind: ``hf``, ``module``, ``onnx`` or ``npz``.
        path: What follows the kind; of an adapter, its base.
        adapter: Folder of the adapter.
    """

    spec: str
    kind: str
    path: str
    adapter: str = ""

    @classmethod
    def parse(cls, spec: str) -> Side:
        """Read ``[KIND:]PATH``, ``ADAPTER`` or ``BASE+ADAPTER``; without a kind the content decides."""
        kind, colon, path = spec.partition(":")
        if not colon or kind not in KINDS:
            dump = (Path(spec) / "parity.json").exists()
            kind, path = ("onnx" if spec.endswith(".onnx") else "npz" if dump else "hf"), spec
        base, _, adapter = path.rpartition("+")
        file = Path(adapter) / "adapter_config.json"
        if kind != "hf" or not file.is_file():
            return cls(spec, kind, path)
        return cls(spec, kind, base or _base_of(file), adapter)

    def runner(self, *, weights: str = "", blocks: str = "") -> Runner:
        """Make the runner; nothing is loaded yet.

        Args:
            weights: Weights an ``hf:`` side gets instead of its own.
            blocks: Path of the stack of blocks.

        Raises:
            UsageError: It takes no other weights, or there is no such factory.
            InputError: There is no such file.
        """
        if weights and (self.kind != "hf" or self.adapter):
            raise UsageError(f"{self.spec} takes no other weights", hint="only model folders do")
        if self.kind == "npz":
            return DumpRunner(Path(self.path), self.spec)
        if self.kind == "onnx":
            return OnnxRunner(Path(self.path), self.spec)
        if self.kind == "module":
            return self._made(blocks)
        return encoder_runner(self.path, weights=weights, adapter=self.adapter, blocks=blocks)

    def _made(self, blocks: str) -> TorchRunner:
        module, _, name = self.path.partition(":")
        try:
            factory = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{self.spec}: {error}", hint="module:package.module:factory") from error
        made, adapter = factory()
        prepare = prepare_module if adapter is None else lambda item, _: adapter.prepare(item)
        return TorchRunner(lambda: copy.deepcopy(made), prepare, self.spec, blocks)


def _base_of(file: Path) -> str:
    try:
        return str(json.loads(file.read_bytes())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: names no base model", hint="BASE+ADAPTER names both") from error
