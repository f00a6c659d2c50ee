"""hilm: stream, film, verify and recognise checkpoints.

The public verbs, loaded when first used, so that ``import hilm`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hilm.store import (
        Store,
        decode,
        diff,
        encode,
        get,
        index,
        inspect,
        plan,
        plan_hub,
        read_tensor,
        report,
        search,
        stream,
        verify,
    )
    from hilm.weights import (
        Checkpoint,
        ChunkMetadata,
        MemoryEfficientParameterStreamer,
        MemoryMonitor,
        RealTimeEncoder,
        Sink,
        StreamingConfig,
        StreamingProgress,
        open_checkpoint,
    )

__version__ = "0.1.0"

_STORE = (
    "Store",
    "decode",
    "diff",
    "encode",
    "get",
    "index",
    "inspect",
    "plan",
    "plan_hub",
    "read_tensor",
    "report",
    "search",
    "stream",
    "verify",
)
_WEIGHTS = (
    "Checkpoint",
    "ChunkMetadata",
    "MemoryEfficientParameterStreamer",
    "MemoryMonitor",
    "RealTimeEncoder",
    "Sink",
    "StreamingConfig",
    "StreamingProgress",
    "open_checkpoint",
)
_HOMES = dict.fromkeys(_STORE, "hilm.store") | dict.fromkeys(_WEIGHTS, "hilm.weights")

__all__ = [
    "Checkpoint",
    "ChunkMetadata",
    "MemoryEfficientParameterStreamer",
    "MemoryMonitor",
    "RealTimeEncoder",
    "Sink",
    "Store",
    "StreamingConfig",
    "StreamingProgress",
    "decode",
    "diff",
    "encode",
    "get",
    "index",
    "inspect",
    "open_checkpoint",
    "plan",
    "plan_hub",
    "read_tensor",
    "report",
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
