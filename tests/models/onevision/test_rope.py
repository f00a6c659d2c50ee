from __future__ import annotations

import numpy as np
import pytest
import torch

from hilm.models.onevision import OneVisionConfig
from hilm.models.onevision.rope import rotate, rotation

POSITIONS = torch.tensor([[0, 0, 0], [63, 5, 2], [9, 137, 90], [1, 2, 3]])


def config(head_dim=64, **fields):
    return OneVisionConfig(hidden_size=2 * head_dim, num_attention_heads=2, **fields)


def oracle(values, positions, style, theta=10000.0):
    """Rotate one channel pair at a time in float64."""
    half = values.shape[-1] // 2
    counts = [half // 16 * share for share in (4, 6, 6)]
    out = np.empty_like(values)
    for token, place in enumerate(positions):
        phase = [p / theta ** (k / n) for p, n in zip(place, counts, strict=True) for k in range(n)]
        for i in range(half):
            if style == "halves":
                a, b, first, second = i, i + half, phase[i], phase[i]
            else:
                a, b = 2 * i, 2 * i + 1
                tiled = (phase[a % half], phase[b % half])
                first, second = tiled if style == "adjacent_tiled" else (phase[i], phase[i])
            va, vb = values[token, :, a], values[token, :, b]
            out[token, :, a] = va * np.cos(first) - vb * np.sin(first)
            out[token, :, b] = vb * np.cos(second) + va * np.sin(second)
    return out


@pytest.mark.parametrize("head_dim", [32, 64, 96])
@pytest.mark.parametrize("style", ["adjacent_tiled", "adjacent", "halves"])
def test_rotation_is_the_one_written_out(head_dim, style):
    values = torch.randn(4, 2, head_dim, generator=torch.Generator().manual_seed(0))
    made = rotate(values, rotation(POSITIONS, config(head_dim, rope_style=style), torch.float32), style)
    expected = oracle(values.double().numpy(), POSITIONS.tolist(), style)
    np.testing.assert_allclose(made.numpy(), expected, atol=3e-5, rtol=0)


def test_the_published_style_is_no_rotation_in_the_strict_sense():
    values = torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(0))
    changes = {}
    for style in ("adjacent_tiled", "adjacent", "halves"):
        turned = rotate(values, rotation(POSITIONS, config(rope_style=style), torch.float32), style)
        changes[style] = float((turned.norm(dim=-1) / values.norm(dim=-1) - 1).abs().max())
    assert changes["adjacent_tiled"] > 1e-2
    assert max(changes["adjacent"], changes["halves"]) < 1e-6


def test_phases_are_float32_whatever_the_model():
    far = torch.tensor([[0, 137, 90]])
    for compute, dtype in (("input", torch.bfloat16), ("float32", torch.float32)):
        made = rotation(far, config(rope_compute=compute), torch.bfloat16)
        exact = rotation(far, config(), torch.float32)
        assert made[0].dtype == dtype
        assert torch.equal(made[0], exact[0].to(dtype))
        assert torch.equal(made[1], exact[1].to(dtype))


@pytest.mark.parametrize("compute", ["input", "float32"])
def test_a_float64_model_rotates_in_float64(compute):
    angles = rotation(POSITIONS, config(rope_compute=compute), torch.float64)
    assert angles[0].dtype == torch.float64
    single = rotation(POSITIONS, config(), torch.float32)
    assert 0 < (angles[0] - single[0]).abs().max() < 1e-7


def test_the_result_has_the_dtype_of_the_states():
    angles = rotation(POSITIONS, config(rope_compute="float32"), torch.bfloat16)
    assert rotate(torch.ones(4, 2, 64, dtype=torch.bfloat16), angles, "halves").dtype == torch.bfloat16
