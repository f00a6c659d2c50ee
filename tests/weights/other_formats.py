"""The same tensors in every format that is read, written by the libraries that own the formats."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from onnx import helper
from safetensors.torch import save_file

FILES = {
    "safetensors": "model.safetensors",
    "torch": "pytorch_model.bin",
    "legacy": "model.pt",
    "gguf": "model.gguf",
    "onnx": "model.onnx",
}


def write_gguf(path, tensors, metadata=None):
    """``tensors``: name → torch tensor, or (packed bytes as uint8 [rows, bytes], type)."""
    writer = GGUFWriter(path, "llama")
    for key, value in (metadata or {}).items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_uint16(key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=GGMLQuantizationType[tensor[1]])
        elif tensor.dtype == torch.bfloat16:
            raw = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def initializer(name, tensor):
    """An ONNX tensor with raw data."""
    kinds = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "int64": "INT64"}
    kind = onnx.TensorProto.DataType.Value(kinds[str(tensor.dtype).removeprefix("torch.")])
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return helper.make_tensor(name, kind, tensor.shape, raw, raw=True)


def write_format(folder, tensors, form):
    """A folder with these torch tensors as one file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILES[form]
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif form == "gguf":
        write_gguf(path, tensors)
    elif form == "onnx":
        graph = helper.make_graph([], "g", [], [], [initializer(n, t) for n, t in tensors.items()])
        onnx.save(helper.make_model(graph), path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "torch")
    return folder
