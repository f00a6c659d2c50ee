"""A small encoder with weights from a formula, pictures from a formula, and both variants of it."""

from __future__ import annotations

import numpy as np
import torch

from hilm.models.onevision import (
    OneVisionConfig,
    OneVisionModel,
    OneVisionPackedConfig,
    OneVisionPackedModel,
    convert_state_dict,
    pack,
)

PATCH = 14
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2}
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])


def formula_weights(state):
    """Fill every weight from its place among the sorted names: the conformance vector's recipe."""
    out = {}
    for n, (key, value) in enumerate(sorted(state.items())):
        x = (np.arange(1, value.numel() + 1) * 0x9E3779B1 + n * 0x85EBCA77).astype(np.uint32)
        x ^= x >> 15
        x *= np.uint32(0x2C1B3C6D)
        x ^= x >> 12
        x *= np.uint32(0x297A2D39)
        x ^= x >> 15
        u = x / 2**32
        if value.ndim > 1:
            u = (2 * u - 1) * np.sqrt(3 * len(value) / value.numel())
        else:
            u = 0.1 * (u - 0.5) + (0 if key.endswith("bias") else 1)
        out[key] = torch.tensor(u.reshape(value.shape), dtype=torch.float32)
    return out


def padded(dtype=torch.float32, **fields):
    model = OneVisionModel(OneVisionConfig(**SHAPE | fields))
    model.load_state_dict(formula_weights(model.state_dict()))
    return model.to(dtype).eval()


def packed(like, **fields):
    """The packed variant with the weights of a padded one, and its precision of rotation."""
    same = like.config.to_dict() | {"rope_compute": like.config.rope_compute} | fields
    same.pop("model_type")
    model = OneVisionPackedModel(OneVisionPackedConfig(**same))
    model.load_state_dict(convert_state_dict(like.state_dict(), "padded", "packed", like.config))
    return model.to(like.dtype).eval()


def levels(frames, height, width):
    """uint8 values (T, H, W, 3) from a formula."""
    f, y, x, c = np.ix_(range(frames), range(height), range(width), range(3))
    return (37 * x + 101 * y + 59 * c + x * y + 83 * f) % 256


def pixels(frames, height, width):
    """Normalised float32 (C, T, H, W)."""
    values = (levels(frames, height, width).astype(np.float32) / 255 - MEAN) / STD
    return torch.tensor(values.transpose(3, 0, 1, 2).copy())


def run(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, output_hidden_states=True, **kwargs)


def run_packed(model, samples):
    batch = pack([(clip.to(model.dtype), slots) for clip, slots in samples], PATCH)
    return run(model, batch.patches, batch.grid_thw, batch.patch_positions)


def equal(one, other):
    """Whether a padded batch of one and a pack of one agree to the bit, in every tensor there is."""
    tensors = [
        [
            *out.hidden_states,
            out.last_hidden_state,
            *([] if out.pooler_output is None else [out.pooler_output]),
        ]
        for out in (one, other)
    ]
    return all(torch.equal(a.reshape(b.shape), b) for a, b in zip(*tensors, strict=True))
