"""Synthetic checkpoints of real shapes, written tensor by tensor."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np

from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

Shapes: TypeAlias = "Mapping[str, tuple[int, ...]]"
Draw: TypeAlias = "Callable[[int], NDArray[Any]]"

ITEM_BYTES = {"F32": 4, "BF16": 2}


def llama(*, width: int, layers: int, hidden: int, vocabulary: int, head: bool) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama without grouped queries; ``head`` adds an output matrix of its own."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for n in range(layers):
        block = f"model.layers.{n}."
        shapes |= {f"{block}self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{block}mlp.{part}_proj.weight": (hidden, width) for part in ("gate", "up")}
        shapes[f"{block}mlp.down_proj.weight"] = (width, hidden)
        shapes |= {f"{block}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    shapes["model.norm.weight"] = (width,)
    return shapes | ({"lm_head.weight": (vocabulary, width)} if head else {})


def gpt2(*, width: int, layers: int, vocabulary: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a GPT-2."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocabulary, width),
        "transformer.wpe.weight": (positions, width),
    }
    for n in range(layers):
        block = f"transformer.h.{n}."
        for part, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            shapes |= {f"{block}{part}.weight": (rows, columns), f"{block}{part}.bias": (columns,)}
        shapes |= norm(f"{block}ln_1", width) | norm(f"{block}ln_2", width)
    return shapes | norm("transformer.ln_f", width)


def bert(*, width: int, layers: int, vocabulary: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a BERT encoder."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocabulary, width),
        "embeddings.position_embeddings.weight": (positions, width),
    }
    shapes |= norm("embeddings.LayerNorm", width)
    for n in range(layers):
        block = f"encoder.layer.{n}."
        for part, rows, columns in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", 4 * width, width),
            ("output.dense", width, 4 * width),
        ):
            shapes |= {f"{block}{part}.weight": (rows, columns), f"{block}{part}.bias": (rows,)}
        shapes |= norm(f"{block}attention.output.LayerNorm", width) | norm(f"{block}output.LayerNorm", width)
    return shapes


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Weight and bias of a normalisation."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def parameters(shapes: Shapes) -> int:
    """Values of all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def normal(rng: np.random.Generator) -> Draw:
    """Draw float32 weights with a deviation of 0.02."""
    return lambda count: rng.standard_normal(count, np.float32) * np.float32(0.02)


def normal_bf16(rng: np.random.Generator) -> Draw:
    """Draw the same, cut to bfloat16."""
    return lambda count: (normal(rng)(count).view(np.uint32) >> 16).astype(np.uint16)


def random_bf16(rng: np.random.Generator) -> Draw:
    """Draw bits that are all random but the highest of the exponent: neither NaN nor infinity."""
    return lambda count: rng.integers(0, 1 << 16, count, np.uint16) & 0xBFFF


def write(folder: Path, shapes: Shapes, dtype: str, draw: Draw, *, shards: int = 1) -> Path:
    """Write a checkpoint folder: consecutive tensors, about as many bytes in each shard."""
    folder.mkdir(parents=True)
    names, total, before = list(shapes), parameters(shapes), 0
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    for name in names:
        parts[before * shards // total][name] = shapes[name]
        before += math.prod(shapes[name])
    if shards == 1:
        write_file(folder / "model.safetensors", parts[0], dtype, draw)
        return folder
    place: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        write_file(folder / file, part, dtype, draw)
        place |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": place})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return folder


def write_sparse(folder: Path, size: int) -> Path:
    """Write a checkpoint of one bfloat16 tensor of so many zero bytes, which take no room on the disk."""
    folder.mkdir(parents=True)
    entry = {"dtype": "BF16", "shape": [size // 2048, 1024], "data_offsets": [0, size]}
    text = json.dumps({"model.weight": entry}).encode()
    with (folder / "model.safetensors").open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + size)
    return folder


def round_to_bf16(model: Path, folder: Path) -> Path:
    """Write a model's weights as bfloat16."""
    with open_checkpoint(model) as source:
        weights = {name: source.array(name) for name, info in source.tensors.items() if info.is_weight}
    rounded = iter([values.astype(ml_dtypes.bfloat16).view(np.uint16) for values in weights.values()])
    return write(folder, {n: v.shape for n, v in weights.items()}, "BF16", lambda _: next(rounded))


def write_file(path: Path, shapes: Shapes, dtype: str, draw: Draw) -> None:
    """Write one safetensors file; one tensor is in memory at a time."""
    header, position = {}, 0
    for name, shape in shapes.items():
        stop = position + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            stream.write(draw(math.prod(shape)).data)
