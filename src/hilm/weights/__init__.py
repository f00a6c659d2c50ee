"""Read any checkpoint: tensors are byte ranges, values arrive in blocks of bounded size."""

from hilm.weights.blocks import Block, Lease
from hilm.weights.checkpoint import Checkpoint, FileInfo, open_checkpoint
from hilm.weights.content import ContentDigest, content_key
from hilm.weights.dtypes import DTYPES, DType, decode
from hilm.weights.memory import MemoryMonitor
from hilm.weights.progress import StreamingProgress
from hilm.weights.real_time import RealTimeEncoder, Sink
from hilm.weights.roles import LAYER_TYPES, Role, classify
from hilm.weights.selection import Selection
from hilm.weights.streamer import (
    ChunkMetadata,
    MemoryEfficientParameterStreamer,
    StreamingConfig,
)
from hilm.weights.tensor import Span, TensorInfo

__all__ = [
    "DTYPES",
    "LAYER_TYPES",
    "Block",
    "Checkpoint",
    "ChunkMetadata",
    "ContentDigest",
    "DType",
    "FileInfo",
    "Lease",
    "MemoryEfficientParameterStreamer",
    "MemoryMonitor",
    "RealTimeEncoder",
    "Role",
    "Selection",
    "Sink",
    "Span",
    "StreamingConfig",
    "StreamingProgress",
    "TensorInfo",
    "classify",
    "content_key",
    "decode",
    "open_checkpoint",
]
