from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from hilm.errors import InputError, UsageError
from hilm.parity import extraction
from hilm.parity.extraction import extract_features
from hilm.parity.features import verify_features
from hilm.parity.inputs import Reading

INPUTS = ("image1=1.png", "image2=2.jpg", "video1=1.mp4", "video2=b-frames.mp4")
KEYS = ["hf_model_path", "packing_model_path", "num_frames", "device", "inputs", "features"]


@pytest.fixture
def inputs(pair):
    return [(text.split("=")[0], "", str(pair / text.split("=")[1])) for text in INPUTS]


def run(pair, inputs, out, packing="packed", **options):
    target = "convert" if packing == "convert" else str(pair / packing)
    return extract_features(str(pair / "padded"), target, inputs, out, reading=Reading(), **options)


@pytest.mark.parametrize("packing", ["packed", "convert"])
def test_the_documented_files(pair, inputs, tmp_path, packing):
    document = run(pair, inputs, tmp_path, packing, dtype="float32", device="cpu", floor=packing == "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["features_hf.npz", "features_packing.npz", "metadata.json"]
    )
    stored = json.loads((tmp_path / "metadata.json").read_text())
    assert list(stored)[:6] == KEYS
    assert stored == json.loads(json.dumps(document))
    assert list(stored["inputs"]) == ["image1", "image2", "video1", "video2"]
    assert stored["inputs"]["video1"]["frame_indices"] == [0, 6, 11, 17, 22, 28, 33, 39]
    assert stored["features"]["hf"]["video1"] == [1, 160, 64]
    assert stored["features"]["packing"]["video1"] == [160, 64]
    assert stored["models"]["same_weights"]
    with np.load(tmp_path / "features_hf.npz", allow_pickle=False) as arrays:
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    report = verify_features(tmp_path)
    assert report.ok
    assert all(match.measured.equal for match in report.matches)


def test_bfloat16_is_near(pair, inputs, tmp_path):
    run(pair, inputs, tmp_path, floor=True)
    report = verify_features(tmp_path)
    assert min(match.measured.cosine_min for match in report.matches) > 0.9999
    assert all(line.endswith("yes") for line in report.details())


def test_earlier_results_are_kept_unless_told_otherwise(pair, inputs, tmp_path):
    run(pair, inputs[:1], tmp_path)
    before = (tmp_path / "metadata.json").read_bytes()
    with pytest.raises(UsageError, match="already"):
        run(pair, inputs[:1], tmp_path)
    assert (tmp_path / "metadata.json").read_bytes() == before
    run(pair, inputs[:2], tmp_path, overwrite=True)
    assert verify_features(tmp_path).ok


def test_a_failed_write_leaves_no_metadata(pair, inputs, tmp_path, monkeypatch):
    run(pair, inputs[:1], tmp_path)
    plain = extraction.write_file

    def fail(path, data):
        if path.name == "features_packing.npz":
            raise OSError(28, "No space left on device")
        plain(path, data)

    monkeypatch.setattr(extraction, "write_file", fail)
    with pytest.raises(OSError, match="No space"):
        run(pair, inputs[:1], tmp_path, overwrite=True)
    assert not (tmp_path / "metadata.json").exists()
    monkeypatch.undo()
    run(pair, inputs[:1], tmp_path, overwrite=True)
    assert verify_features(tmp_path).ok


def test_bad_inputs_stop_before_a_model_is_loaded(pair, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_run_side", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=r"none\.png"):
        run(pair, [*inputs, ("x", "", str(tmp_path / "none.png"))], tmp_path / "a")
    with pytest.raises(UsageError, match="MiB"):
        run(pair, inputs, tmp_path / "b", memory_limit_mb=0.01)
    with pytest.raises(UsageError, match="no device 'cuda'"):
        run(pair, inputs, tmp_path / "c", device="cuda")
    with pytest.raises(UsageError, match="flash"):
        run(pair, inputs, tmp_path / "d", attention="flash")
    with pytest.raises(InputError, match="config"):
        run(pair, inputs, tmp_path / "e", packing="nothing")


def test_models_of_two_shapes_are_refused(pair, inputs, tmp_path):
    shutil.copytree(pair / "packed", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    with pytest.raises(UsageError, match="rope_theta"):
        run(pair, inputs, tmp_path / "out", packing=tmp_path / "other")


def test_a_layer_that_is_not_there(pair, inputs, tmp_path):
    with pytest.raises(UsageError, match="hidden states"):
        run(pair, inputs[:1], tmp_path, layer=9)
