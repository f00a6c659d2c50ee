from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.training.difference import full_difference, low_rank_difference, ranks, singular_values
from hilm.weights import open_checkpoint
from tests.tiny import write_model


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(6, 20), st.integers(6, 20))
def test_the_spectrum_is_that_of_the_product(seed, rank, rows, columns):
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((rank, columns)), random.standard_normal((rows, rank))
    whole = np.linalg.svd(b @ a, compute_uv=False)[:rank]
    assert singular_values(a, b) == pytest.approx(whole, rel=1e-9, abs=1e-9)


def test_ranks():
    assert ranks(np.zeros(3)) == (0, 0.0)
    assert ranks(np.array([2.0, 2.0, 1e-9])) == (2, pytest.approx(2.0))


def test_adapters_as_if_they_were_merged(tmp_path):
    """Figures from the factors are those of the merged model."""
    random = np.random.default_rng(5)
    name = "model.layers.0.self_attn.q_proj.weight"
    base = {
        name: random.standard_normal((32, 48)).astype(np.float32),
        "model.norm.weight": np.ones(48, np.float32),
    }
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((4, 48), (32, 4)))
    head = "base_model.model.model.layers.0.self_attn.q_proj"
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "child", base | {name: base[name] + np.float32(2) * (b @ a)})
    folder = write_model(tmp_path / "adapter", {f"{head}.lora_A.weight": a, f"{head}.lora_B.weight": b})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 4, "peft_type": "LORA"}')
    with (
        open_checkpoint(tmp_path / "base") as first,
        open_checkpoint(tmp_path / "child") as second,
        open_checkpoint(folder) as adapter,
    ):
        whole = full_difference(first, second, [(n, n) for n in base])
        low = low_rank_difference(first, adapter)
    for figure in ("relative_change", "cosine", "effective_rank"):
        assert low["attention"][figure] == pytest.approx(whole["attention"][figure], rel=1e-3)
    assert low["attention"]["rank"] == 4
    assert whole["normalization"]["changed"] == low["normalization"]["changed"] == 0
