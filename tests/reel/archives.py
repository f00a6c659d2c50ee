from __future__ import annotations

import math

import numpy as np

from hilm.reel.decoder import Reel, decode_files
from hilm.reel.encoder import encode_archive
from hilm.reel.sampling import ModelSample
from hilm.weights.checkpoint import open_checkpoint
from hilm.weights.selection import Selection
from hilm.weights.streamer import MemoryEfficientParameterStreamer, StreamingConfig
from tests.tiny import BITS, stored


def random_tensor(rng, dtype, shape):
    """Any bits at all, or for wide floats something like weights."""
    size = math.prod(shape) * BITS[dtype] // 8
    return dtype, shape, rng.bytes(size)


def every_dtype(seed=0):
    """Tensors of every element type in several shapes, and every word of 16 bits."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for dtype, bits in BITS.items():
        shapes = [(0, 8), (8,), (31, 40), (2, 3, 4)] + ([(), (1,), (5, 3)] if bits >= 8 else [])
        for shape in shapes:
            tensors[f"{dtype}.{shape}"] = random_tensor(rng, dtype, shape)
    words = np.arange(1 << 16, dtype="<u2").tobytes()
    for dtype in ("F16", "BF16", "I16", "U16"):
        tensors[f"{dtype}.all"] = dtype, (256, 256), words
    odd = np.array([0, 1 << 31, 0x7F800001, 0xFF812345, 0x7F800000, 0xFF800000, 1, 0x7149F2CA], "<u4")
    tensors["F32.odd"] = "F32", (8,), odd.tobytes()
    tensors["F32.normal"] = stored(rng.standard_normal((300, 1000)).astype(np.float32))
    tensors["BF16.normal"] = stored(rng.standard_normal((300, 1000)).astype(np.float32), "BF16")
    tensors["F32.constant"] = stored(np.full((40, 40), 0.1, np.float32))
    return tensors


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def encode(model, out, **options):
    with open_checkpoint(model) as checkpoint:
        return encode_archive(checkpoint, out, **{"preview": False, "threads": 1} | options)


def decode(reel, out):
    with Reel.open(reel) as opened:
        return decode_files(opened, out)


def sample_model(path, limit, *, chunk_size=None, layers=None):
    """What the store hands over: a model's selected values, in one frame or in chunks."""
    with open_checkpoint(path) as checkpoint:
        rule = {"limit": limit, "layers": layers, "exclude_layers": None}
        chunks, values = (), Selection.of(checkpoint, **rule).values(checkpoint)
        if chunk_size is not None:
            config = StreamingConfig(chunk_size, adaptive_chunk_sizing=False, target_layers=layers)
            stream = MemoryEfficientParameterStreamer(config).stream(checkpoint, max_total_params=limit)
            streamed = [(part, chunk) for part, chunk, _ in stream]
            values = np.concatenate([part for part, _ in streamed])
            chunks = tuple(chunk for _, chunk in streamed)
        return ModelSample(
            checkpoint.name, checkpoint.total_parameters, values, bytes(32), rule, {"a": 1}, chunks
        )
