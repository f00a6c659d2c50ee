"""Small checkpoints for tests, written byte by byte so that every dtype and oddity can be made."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
NAMES = {"f2": "F16", "f4": "F32", "f8": "F64", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64",
         "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64", "b1": "BOOL", "c8": "C64"}  # fmt: skip

Stored = tuple[str, tuple[int, ...], bytes]


def stored(array, dtype: str | None = None) -> Stored:
    """An array as (dtype, shape, bytes); ``dtype="BF16"`` cuts float32 to its upper half."""
    array = np.asarray(array)
    if dtype == "BF16" and array.dtype == np.float32:
        bits = array.view(np.uint32).astype(np.uint64)
        return "BF16", array.shape, (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")).tobytes()
    name = dtype or NAMES[array.dtype.str[1:]]
    return name, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes()


def file_bytes(tensors: dict[str, Stored], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file; tensors are stored in the order given."""
    header, position = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, data) in tensors.items():
        assert len(data) * 8 == math.prod(shape) * BITS[dtype], name
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + len(data)],
        }
        position += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def write_model(
    folder: Path, tensors: dict, *, shards: int = 1, config: dict | None = None, metadata=None
) -> Path:
    """A checkpoint folder; values may be arrays or (dtype, shape, bytes)."""
    folder.mkdir(parents=True, exist_ok=True)
    ready = {n: t if isinstance(t, tuple) else stored(t) for n, t in tensors.items()}
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        (folder / "model.safetensors").write_bytes(file_bytes(ready, metadata))
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: t for i, (n, t) in enumerate(ready.items()) if i % shards == number}
        (folder / name).write_bytes(file_bytes(part, metadata))
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_sparse(folder: Path, shape: tuple[int, ...], dtype: str = "BF16") -> Path:
    """A checkpoint of one tensor of zeros that takes no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    size = math.prod(shape) * BITS[dtype] // 8
    text = json.dumps({"w": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + size)
    return folder


def bert_like(seed: int = 0, *, width=64, layers=4, hidden=256, vocabulary=1000, positions=64) -> dict:
    """Random float32 weights named and shaped like a small BERT."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, width, layers]))
    scale = 0.02 * np.exp(0.3 * rng.standard_normal(width)).astype(np.float32)

    def matrix(rows: int, columns: int) -> np.ndarray:
        drawn = rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(0.02)
        return drawn * scale / np.float32(0.02) if columns == width else drawn

    tensors = {
        "embeddings.word_embeddings.weight": matrix(vocabulary, width),
        "embeddings.position_embeddings.weight": matrix(positions, width),
        "embeddings.LayerNorm.weight": np.ones(width, np.float32),
        "embeddings.LayerNorm.bias": np.zeros(width, np.float32),
    }
    for n in range(layers):
        prefix = f"encoder.layer.{n}."
        for part in ("query", "key", "value"):
            tensors[f"{prefix}attention.self.{part}.weight"] = matrix(width, width)
            tensors[f"{prefix}attention.self.{part}.bias"] = np.zeros(width, np.float32)
        tensors[prefix + "attention.output.dense.weight"] = matrix(width, width)
        tensors[prefix + "attention.output.LayerNorm.weight"] = np.ones(width, np.float32)
        tensors[prefix + "intermediate.dense.weight"] = matrix(hidden, width)
        tensors[prefix + "intermediate.dense.bias"] = matrix(1, hidden)[0]
        tensors[prefix + "output.dense.weight"] = matrix(width, hidden)
        tensors[prefix + "output.LayerNorm.weight"] = np.ones(width, np.float32)
    return tensors
