"""Fine-tuning with its lineage attached: checked before, journalled while, proved after."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hilm.training.config import FitConfig, load_config
    from hilm.training.launch import fit
    from hilm.training.merging import merge
    from hilm.training.provenance import finish

__all__ = ["FitConfig", "finish", "fit", "load_config", "merge"]

_HOMES = {
    "FitConfig": "config",
    "finish": "provenance",
    "fit": "launch",
    "load_config": "config",
    "merge": "merging",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"hilm.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
