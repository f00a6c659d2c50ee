"""hilm: stream, film, verify and recognise checkpoints.

The public verbs, loaded when first used, so that ``import hilm`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hilm.store import Store, decode, diff, encode, index, inspect, search, stream, verify
    from hilm.weights import (
        Checkpoint,
        ChunkMetadata,
        MemoryEfficientParameterStreamer,
        MemoryMonitor,
        StreamingConfig,
        StreamingProgress,
        open_checkpoint,
    )

__version__ = "0.1.0"

_HOMES = {
    "Store": "hilm.store",
    "decode": "hilm.store",
    "diff": "hilm.store",
    "encode": "hilm.store",
    "index": "hilm.store",
    "inspect": "hilm.store",
    "search": "hilm.store",
    "stream": "hilm.store",
    "verify": "hilm.store",
    "Checkpoint": "hilm.weights",
    "ChunkMetadata": "hilm.weights",
    "MemoryEfficientParameterStreamer": "hilm.weights",
    "MemoryMonitor": "hilm.weights",
    "StreamingConfig": "hilm.weights",
    "StreamingProgress": "hilm.weights",
    "open_checkpoint": "hilm.weights",
}

__all__ = [
    "Checkpoint",
    "ChunkMetadata",
    "MemoryEfficientParameterStreamer",
    "MemoryMonitor",
    "Store",
    "StreamingConfig",
    "StreamingProgress",
    "decode",
    "diff",
    "encode",
    "index",
    "inspect",
    "open_checkpoint",
    "search",
    "stream",
    "verify",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hilm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
