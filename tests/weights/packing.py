"""Packed weights as the programs that pack them store these, written slowly, with their values."""

from __future__ import annotations

import json
from typing import NamedTuple

import ml_dtypes
import numpy as np

from tests.tiny import stored, write_model

BASE = "model.layers.0.self_attn.q_proj"
NF4 = np.array(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32,
)  # fmt: skip
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


class Sample(NamedTuple):
    """Stored tensors, ``quantization_config``, and the values that they stand for."""

    tensors: dict
    settings: dict
    values: np.ndarray
    name: str = f"{BASE}.weight"


def words(fields, bits: int) -> np.ndarray:
    """Fields one behind the other, least significant bits first, as int32."""
    number = sum(int(field) << bits * i for i, field in enumerate(fields))
    return np.frombuffer(number.to_bytes(len(fields) * bits // 8, "little"), "<i4")


def gptq(rng, *, rows=32, columns=64, group=32, bits=4, v2=False, order=False) -> Sample:
    q = rng.integers(0, 1 << bits, (columns, rows))
    groups = -(-columns // group)
    z = rng.integers(0, 1 << bits, (groups, rows))
    s = rng.normal(0, 0.01, (groups, rows)).astype(np.float16)
    g = rng.integers(0, groups, columns) if order else np.arange(columns) // group
    values = np.empty((rows, columns), np.float32)
    for i in range(columns):
        for j in range(rows):
            zero = int(z[g[i], j]) + (not v2)
            values[j, i] = np.float32(int(q[i, j]) - zero) * np.float32(s[g[i], j])
    tensors = {
        f"{BASE}.qweight": np.stack([words(column, bits) for column in q.T], axis=1),
        f"{BASE}.qzeros": np.stack([words(line, bits) for line in z]),
        f"{BASE}.scales": s,
    }
    if order:
        tensors[f"{BASE}.g_idx"] = g.astype(np.int32)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group}
    return Sample(tensors, settings | ({"checkpoint_format": "gptq_v2"} if v2 else {}), values)


def awq(rng, *, rows=32, columns=64, group=32) -> Sample:
    q, z = rng.integers(0, 16, (columns, rows)), rng.integers(0, 16, (columns // group, rows))
    s = rng.normal(0, 0.01, (columns // group, rows)).astype(np.float16)
    values = np.empty((rows, columns), np.float32)
    for i in range(columns):
        for j in range(rows):
            k = i // group
            values[j, i] = np.float32(int(q[i, j]) - int(z[k, j])) * np.float32(s[k, j])

    def shuffled(lines) -> np.ndarray:
        order = [8 * (j // 8) + (0, 2, 4, 6, 1, 3, 5, 7)[j % 8] for j in range(rows)]
        return np.stack([words(line[order], 4) for line in lines])

    tensors = {f"{BASE}.qweight": shuffled(q), f"{BASE}.qzeros": shuffled(z), f"{BASE}.scales": s}
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    return Sample(tensors, settings, values)


def codebook(rng, *, rows=16, columns=40, group=64, nested=False) -> Sample:
    q = rng.integers(0, 16, rows * columns)
    count = -(-len(q) // group)
    name = f"{BASE}.weight"
    state = {"quant_type": "nf4", "blocksize": group, "dtype": "bfloat16", "shape": [rows, columns]}
    tensors = {
        name: np.array([[(int(a) << 4) | int(b)] for a, b in zip(q[::2], q[1::2], strict=True)], np.uint8),
        f"{name}.quant_map": NF4,
    }
    absmax = rng.random(count).astype(np.float32)
    if nested:
        codes, book = rng.integers(0, 256, count), np.sort(rng.normal(0, 1, 256)).astype(np.float32)
        outer, offset = rng.random(-(-count // 4)).astype(np.float32), 0.0625
        for i in range(count):
            absmax[i] = np.float32(book[codes[i]] * outer[i // 4]) + np.float32(offset)
        tensors |= {
            f"{name}.absmax": codes.astype(np.uint8),
            f"{name}.nested_absmax": outer,
            f"{name}.nested_quant_map": book,
        }
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": offset}
    else:
        tensors[f"{name}.absmax"] = absmax
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = text
    values = np.array([NF4[code] * absmax[i // group] for i, code in enumerate(q)], np.float32)
    return Sample(tensors, {"quant_method": "bitsandbytes"}, values.reshape(rows, columns))


def int8(rng, *, rows=16, columns=40) -> Sample:
    q, scb = rng.integers(-127, 128, (rows, columns)).astype(np.int8), rng.random(rows).astype(np.float32)
    tensors = {
        f"{BASE}.weight": q, f"{BASE}.SCB": scb, f"{BASE}.weight_format": np.array(0, np.uint8)
    }  # fmt: skip
    values = q * scb[:, None] * np.float32(1 / 127)
    return Sample(tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True}, values)


def fp8(rng, *, shape=(300, 200), scales=(3, 2), suffix="_scale_inv", settings=None) -> Sample:
    q = rng.normal(0, 1, shape).astype(ml_dtypes.float8_e4m3fn)
    s = rng.random(scales).astype(np.float32)
    values = q.astype(np.float32)
    grid = s.reshape(*s.shape, *[1] * (len(shape) - s.ndim))
    for index in np.ndindex(shape):
        band = [
            0 if have == 1 else i if have == size else i // 128
            for i, size, have in zip(index, shape, grid.shape, strict=True)
        ]
        values[index] *= grid[tuple(band)]
    tensors = {
        f"{BASE}.weight": stored(q.view(np.uint8), "F8_E4M3"), f"{BASE}.weight{suffix}": s
    }  # fmt: skip
    return Sample(tensors, settings or {"quant_method": "fp8", "weight_block_size": [128, 128]}, values)


def _compressed(form: str, **weights) -> dict:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def words_int(rng, *, rows=24, columns=52, group=13, bits=4, zeros=True, order=False) -> Sample:
    half = 1 << bits - 1
    q = rng.integers(-half, half, (rows, columns))
    groups = -(-columns // group)
    z = rng.integers(-half, half, (rows, groups)) if zeros else np.zeros((rows, groups), int)
    s = stored(rng.normal(0, 0.01, (rows, groups)).astype(np.float32), "BF16")
    scale = (np.frombuffer(s[2], "<u2").astype(np.uint32) << 16).view(np.float32).reshape(rows, groups)
    g = rng.permutation(np.arange(columns) // group) if order else np.arange(columns) // group
    values = np.array(
        [[np.float32(q[i, j] - z[i, g[j]]) * scale[i, g[j]] for j in range(columns)] for i in range(rows)],
        np.float32,
    )
    padded = [np.r_[line + half, np.zeros(-columns * bits % 32 // bits, int)] for line in q]
    tensors = {
        f"{BASE}.weight_packed": np.stack([words(line, bits) for line in padded]),
        f"{BASE}.weight_scale": s,
        f"{BASE}.weight_shape": np.array([rows, columns]),
    }
    if zeros:
        padded = [np.r_[line + half, np.zeros(-rows * bits % 32 // bits, int)] for line in z.T]
        tensors[f"{BASE}.weight_zero_point"] = np.stack([words(line, bits) for line in padded], axis=1)
    if order:
        tensors[f"{BASE}.weight_g_idx"] = g.astype(np.int32)
    return Sample(tensors, _compressed("pack-quantized", num_bits=bits, group_size=group), values)


def bytes_int(rng, *, rows=16, columns=40) -> Sample:
    q = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    z = rng.integers(-20, 20, (rows, 1)).astype(np.int8)
    s = rng.random((rows, 1)).astype(np.float32)
    values = (q.astype(np.float32) - z) * s
    tensors = {
        f"{BASE}.weight": q, f"{BASE}.weight_scale": s, f"{BASE}.weight_zero_point": z
    }  # fmt: skip
    return Sample(tensors, _compressed("int-quantized", num_bits=8), values)


def _nibbles(q) -> np.ndarray:
    return (q[..., ::2] | q[..., 1::2] << 4).astype(np.uint8)


def nvfp4(rng, *, rows=16, columns=64) -> Sample:
    q = rng.integers(0, 16, (rows, columns))
    s = rng.random((rows, columns // 16)).astype(ml_dtypes.float8_e4m3fn)
    whole = np.array([3.7], np.float32)
    local = s.astype(np.float32) / whole[0]
    values = np.array(
        [
            [np.float32(E2M1[c]) * t for c, t in zip(*p, strict=True)]
            for p in zip(q, local.repeat(16, 1), strict=True)
        ]
    )
    tensors = {
        f"{BASE}.weight_packed": _nibbles(q),
        f"{BASE}.weight_scale": stored(s.view(np.uint8), "F8_E4M3"),
        f"{BASE}.weight_global_scale": whole,
    }
    return Sample(tensors, _compressed("nvfp4-pack-quantized", num_bits=4, group_size=16), values)


def mxfp4(rng, *, experts=3, rows=34, columns=96) -> Sample:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    q = rng.integers(0, 16, (experts, rows, columns))
    s = rng.integers(100, 140, (experts, rows, columns // 32))
    values = np.empty(q.shape, np.float32)
    for e, i, j in np.ndindex(q.shape):
        values[e, i, j] = E2M1[q[e, i, j]] * 2.0 ** (int(s[e, i, j // 32]) - 127)
    blocks = _nibbles(q).reshape(experts, rows, columns // 32, 16)
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": s.astype(np.uint8)}
    return Sample(tensors, {"quant_method": "mxfp4"}, values, name)


SAMPLES = {
    "gptq2": lambda rng: gptq(rng, bits=2),
    "gptq3": lambda rng: gptq(rng, bits=3),
    "gptq4": gptq,
    "gptq8": lambda rng: gptq(rng, bits=8),
    "gptq4-v2": lambda rng: gptq(rng, v2=True),
    "gptq4-ordered": lambda rng: gptq(rng, order=True),
    "gptq4-uneven": lambda rng: gptq(rng, columns=72, group=32),
    "awq4": awq,
    "nf4": codebook,
    "nf4-nested": lambda rng: codebook(rng, nested=True),
    "bnb8": int8,
    "fp8-blocks": fp8,
    "fp8-tensor": lambda rng: fp8(rng, scales=(), suffix="_scale"),
    "fp8-rows": lambda rng: fp8(rng, scales=(300,), suffix="_scale"),
    "fp8-columns": lambda rng: fp8(rng, scales=(1, 200), suffix="_scale"),
    "fp8-experts": lambda rng: fp8(rng, shape=(2, 130, 140), scales=(2, 2, 2)),
    "int4": words_int,
    "int4-symmetric": lambda rng: words_int(rng, zeros=False),
    "int4-ordered": lambda rng: words_int(rng, order=True),
    "int8-words": lambda rng: words_int(rng, bits=8),
    "int8-bytes": bytes_int,
    "nvfp4": nvfp4,
    "mxfp4": mxfp4,
}


def write(folder, sample, **options):
    """A checkpoint folder that holds nothing but a sample."""
    config = {"quantization_config": sample.settings} if sample.settings else None
    return write_model(folder, sample.tensors, config=config, **options)


def gptq_model(tensors: dict, *, group=32) -> tuple[dict, dict]:
    """A model with the matrices of its blocks packed by GPTQ in 4 bits; and with their values."""
    packed, plain = {}, {}
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    for name, w in tensors.items():
        if w.ndim != 2 or "layer." not in name:
            packed[name] = plain[name] = w
            continue
        rows, columns = w.shape
        parts = w.T.reshape(columns // group, group, rows)
        low, high = parts.min(axis=1), parts.max(axis=1)
        s = ((high - low) / 14).astype(np.float16)
        z = np.clip(np.rint(-low / s), 1, 16).astype(np.uint32)
        q = np.clip(np.rint(parts / s[:, None]) + z[:, None], 0, 15).astype(np.uint32)
        values = (q.astype(np.float32) - z[:, None]) * s[:, None].astype(np.float32)
        plain[name] = values.reshape(columns, rows).T.astype(np.float32)
        stem = name.removesuffix("weight")
        lanes = q.reshape(columns // 8, 8, rows) << shifts[None, :, None]
        packed[stem + "qweight"] = lanes.sum(axis=1, dtype=np.uint32).view(np.int32)
        lanes = (z - 1).reshape(len(z), rows // 8, 8) << shifts
        packed[stem + "qzeros"] = lanes.sum(axis=2, dtype=np.uint32).view(np.int32)
        packed[stem + "scales"] = s
    return packed, plain


def gptq_config(group=32) -> dict:
    """Its ``config.json``."""
    return {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": group}}
