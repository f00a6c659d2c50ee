from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import UsageError
from hilm.store import get
from hilm.weights import open_checkpoint
from tests.reel.archives import encode, every_dtype
from tests.tiny import write_model


@pytest.fixture(scope="module")
def tensors():
    return every_dtype()


@pytest.fixture(scope="module")
def reel(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("get")
    encode(write_model(folder / "m", tensors), folder / "x.reel.mp4")
    return folder / "x.reel.mp4"


def test_every_type_is_written_as_it_is_stored(reel, tensors, tmp_path):
    for name, (dtype, shape, raw) in tensors.items():
        document = get(reel, name, out=tmp_path / "x.safetensors")
        assert (document["dtype"], document["shape"], document["rows"]) == (dtype, list(shape), None)
        with open_checkpoint(document["out"]) as written:
            info = written.tensors[name]
            assert (info.dtype, info.shape) == (dtype, shape)
            if raw:
                assert written.read_file(0, info.span.start, info.span.stop) == raw


@pytest.mark.parametrize(
    ("dtype", "same"), [("F32", "<f4"), ("F64", "<f8"), ("F16", "<f2"), ("I64", "<i8"), ("BOOL", "u1")]
)
def test_numpy_gets_its_own_types_unchanged(reel, tensors, tmp_path, dtype, same):
    name = f"{dtype}.(31, 40)"
    get(reel, name, out=tmp_path / "x.npy", rows=(3, 7))
    found = np.load(tmp_path / "x.npy")
    assert found.shape == (4, 40)
    assert found.tobytes() == np.frombuffer(tensors[name][2], same).reshape(31, 40)[3:7].tobytes()


def test_numpy_gets_float32_where_it_has_no_type(reel, tensors, tmp_path):
    get(reel, "BF16.normal", out=tmp_path / "x.npy")
    words = np.frombuffer(tensors["BF16.normal"][2], "<u2").astype("<u4") << 16
    assert np.load(tmp_path / "x.npy").tobytes() == words.tobytes()


def test_figures_are_of_what_was_read(reel, tensors):
    values = np.frombuffer(tensors["F32.normal"][2], "<f4").reshape(300, 1000)[7:9]
    document = get(reel, "F32.normal", rows=(7, 9))
    assert document["first"] == values.reshape(-1)[:8].tolist()
    assert document["parameters"] == 2000
    assert document["mean"] == pytest.approx(values.astype(float).mean())
    assert (document["min"], document["max"]) == (values.min(), values.max())
    assert (document["out"], document["requests"]) == (None, None)
    assert get(reel, "F4.(8,)")["first"] == []


def test_another_kind_of_file_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="neither"):
        get(tmp_path / "nothing", "w", out=tmp_path / "x.txt")
