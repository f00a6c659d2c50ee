from __future__ import annotations

import json

import numpy as np
import pytest

from hilm.lineage.adapter import find_applied, fits
from hilm.lineage.fingerprint import fingerprint
from hilm.lineage.search import Print, weigh
from hilm.lineage.verdict import verdict
from hilm.weights import open_checkpoint
from tests.lineage.family import print_of
from tests.lineage.kinship import plus, task
from tests.tiny import bert_like, file_bytes, stored

TARGETS = ("attention.self.query.weight", "attention.self.value.weight")


def lora(base, seed, rank=4, size=0.02):
    """Factors of an adapter for some matrices of a model."""
    rng = np.random.default_rng(seed)
    return {
        name: tuple(
            (size * rng.standard_normal(shape)).astype(np.float32)
            for shape in ((rank, values.shape[1]), (values.shape[0], rank))
        )
        for name, values in base.items()
        if name.endswith(TARGETS)
    }


def write(folder, factors, **config):
    folder.mkdir(parents=True)
    tensors = {}
    for name, (a, b) in factors.items():
        module = "base_model.model." + name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": stored(a), f"{module}.lora_B.weight": stored(b)}
    (folder / "adapter_model.safetensors").write_bytes(file_bytes(tensors))
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 4} | config))
    return folder


def opened(folder, tensors=None):
    if tensors is not None:
        return Print(folder.name, print_of(folder, tensors).to_row(bytes(32)))
    with open_checkpoint(folder) as checkpoint:
        return Print(folder.name, fingerprint(checkpoint).to_row(bytes(32)))


def merged(base, factors, scale=2.0):
    return base | {n: (base[n] + scale * (b @ a)).astype(np.float32) for n, (a, b) in factors.items()}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("adapted"), bert_like(1)
    factors = lora(base, 3)
    return {
        "adapter": opened(write(folder / "adapter", factors)),
        "continued": opened(
            write(
                folder / "continued",
                {
                    n: (a, b + np.float32(0.002) * np.sin(np.arange(b.size).reshape(b.shape)))
                    for n, (a, b) in factors.items()
                },
            )
        ),
        "other": opened(write(folder / "other", lora(base, 4))),
        "base": opened(folder / "base", base),
        "merged": opened(folder / "merged", merged(base, factors)),
        "tuned": opened(folder / "tuned", plus(base, (1, task(base, 9)))),
        "stranger": opened(folder / "stranger", bert_like(2)),
        "small": opened(folder / "small", bert_like(2, width=32)),
    }


def test_an_adapter_is_recognised_by_what_it_adds(adapted):
    adapter = adapted["adapter"]
    assert adapter.is_adapter
    assert not adapted["base"].is_adapter
    assert verdict(weigh(adapter, adapted["continued"])).relation == "fine-tune"
    assert verdict(weigh(adapter, adapted["other"])).relation == "independent"
    assert verdict(weigh(adapter, adapted["base"])).relation == "independent"
    assert len(adapter.matrices) == 8
    assert set(adapter.side().shapes) == {(64, 64)}


def test_shapes_tell_what_it_fits(adapted):
    models = ("base", "merged", "stranger", "small")
    assert [name for name in models if fits(adapted["adapter"], adapted[name])] == [
        "base",
        "merged",
        "stranger",
    ]


def test_two_models_that_differ_by_it_are_found(adapted):
    names = ["base", "stranger", "tuned", "merged"]
    found = find_applied(adapted["adapter"], [adapted[name] for name in names])
    best = found[0]
    assert (names[best.base], names[best.model]) == ("base", "merged")
    assert best.cosine > 0.9
    assert best.p_value < 1e-100
    assert not find_applied(adapted["other"], [adapted[name] for name in names])


@pytest.mark.parametrize(
    ("config", "norm"), [({}, 2.0), ({"use_rslora": True}, 4.0), ({"alpha_pattern": {"query": 16}}, 4.0)]
)
def test_norms_carry_the_scale(tmp_path, config, norm):
    base = bert_like(1)
    factors = lora(base, 3)
    name = next(n for n in factors if "query" in n)
    a, b = factors[name]
    found = opened(write(tmp_path / "adapter", {name: (a, b)}, **config)).matrices
    assert found["norm"][0] == pytest.approx(norm * np.linalg.norm(b @ a), rel=1e-5)


def test_factors_of_transposed_matrices(tmp_path):
    base = {f"h.{n}.attn.c_attn.weight": np.zeros((64, 192), np.float32) for n in range(3)}
    rng = np.random.default_rng(0)
    factors = {
        n: (rng.standard_normal((4, 64)).astype("f4"), rng.standard_normal((192, 4)).astype("f4"))
        for n in base
    }
    found = opened(write(tmp_path / "adapter", factors, fan_in_fan_out=True))
    assert set(found.side().shapes) == {(64, 192)}
