from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import EmptySelection, NotACheckpoint, UnknownLayerType
from hilm.store import inspect, stream
from tests.store.conftest import tiny
from tests.tiny import write_model

PARAMETERS = sum(v.size for v in tiny(1).values())
NINE = {
    "model_name", "progress_percent", "processed_parameters", "total_parameters", "chunks_encoded",
    "processing_rate", "elapsed_time", "memory_usage_mb", "current_layer",
}  # fmt: skip


def test_inspect_lists_every_tensor_and_counts_weights(tmp_path):
    folder = write_model(tmp_path / "model", tiny(1) | {"position_ids": np.arange(16)}, shards=2)
    document = inspect(folder)
    assert document["parameters"] == sum(document["roles"].values()) == PARAMETERS
    assert {t["name"]: tuple(t["shape"]) for t in document["tensors"]} == {
        n: v.shape for n, v in (tiny(1) | {"position_ids": np.arange(16)}).items()
    }
    assert [file["bytes"] for file in document["files"]] == [
        path.stat().st_size for path in sorted(folder.glob("*.safetensors"))
    ]


def test_stream_measures_every_value_once_whatever_the_chunks(house):
    values = np.concatenate([v.ravel() for v in tiny(1).values()]).astype(np.float64)
    same = []
    for chunk_size in (100, 4096):
        document = stream(house / "base", chunk_size=chunk_size, adaptive=False)
        same.append(document["layers"])
        assert document.keys() >= NINE
        assert document["processed_parameters"] == document["total_parameters"] == PARAMETERS
        layers = document["layers"].values()
        assert sum(layer["parameters"] for layer in layers) == PARAMETERS
        mean = sum(layer["mean"] * layer["parameters"] for layer in layers) / PARAMETERS
        assert mean == pytest.approx(values.mean(), rel=1e-6)
        assert max(layer["max"] for layer in layers) == values.max()
        assert sum(layer["zeros"] for layer in layers) == (values == 0).sum()
    assert same[0] == same[1]  # to the last bit


def test_stream_takes_filters_and_a_limit_and_reports(house):
    seen = []
    document = stream(
        house / "base",
        layers=["mlp"],
        max_params=100,
        progress=lambda state: seen.append((state.processed_parameters, state.total_parameters)),
    )
    assert set(document["layers"]) == {"mlp"}
    assert document["processed_parameters"] == 100
    assert seen[-1] == (100, 100)
    assert "mlp" not in stream(house / "base", exclude_layers=["mlp"])["layers"]


def test_what_cannot_be_read_is_said(house, tmp_path):
    with pytest.raises(NotACheckpoint):
        inspect(tmp_path / "nowhere")
    with pytest.raises(UnknownLayerType):
        stream(house / "base", layers=["atention"])
    with pytest.raises(EmptySelection):
        stream(house / "base", layers=["mlp"], exclude_layers=["mlp"])
