from __future__ import annotations

import json

import numpy as np
import pytest

from hilm import errors
from hilm.weights.folder import locate
from hilm.weights.weight_files import INDEX
from tests.tiny import file_bytes, stored, write_model

ONE = file_bytes({"w": stored(np.ones(3, np.float32))})


def test_folder_file_and_index_name_the_same_weights(tmp_path):
    folder = write_model(tmp_path / "m", {"a": np.ones(3), "b": np.ones(4)}, shards=2)
    by_folder, by_index = locate(folder), locate(folder / INDEX)
    assert by_folder == by_index
    assert by_folder.name == "m"
    assert by_folder.weights == (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    )


def test_a_weight_file_is_called_after_its_folder_only_under_the_usual_name(tmp_path):
    for name in ("model.safetensors", "other.safetensors"):
        (tmp_path / name).write_bytes(ONE)
    assert locate(tmp_path / "model.safetensors").name == tmp_path.name
    assert locate(tmp_path / "other.safetensors").name == "other"
    assert locate(tmp_path).unused == ("other.safetensors",)


def test_shards_without_index_must_be_complete(tmp_path):
    (tmp_path / "m-00001-of-00002.safetensors").write_bytes(ONE)
    with pytest.raises(errors.MissingShard, match="m-00002-of-00002"):
        locate(tmp_path)
    (tmp_path / "m-00002-of-00002.safetensors").write_bytes(ONE)
    assert len(locate(tmp_path).weights) == 2


def test_two_candidates_are_not_guessed_between(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(ONE)
    (tmp_path / "b.safetensors").write_bytes(ONE)
    with pytest.raises(errors.AmbiguousCheckpoint, match=r"a\.safetensors, b\.safetensors"):
        locate(tmp_path)


@pytest.mark.parametrize("target", ["./missing", "missing.bin", "a/b/c", "..", "a/missing.safetensors"])
def test_nothing_there(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.NotACheckpoint, match=r"missing|a/b/c|no weights") as caught:
        locate(target)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("target", "error"), [("missing", errors.NotACheckpoint), ("org/M-0.5B", errors.OfflineError)]
)
def test_what_is_no_path_may_be_on_the_hub(tmp_path, monkeypatch, target, error):
    """One word is a mistyped path more often than a model that only the network could tell of."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"no file or folder '{target}'; as a Hub id") as caught:
        locate(target)
    assert caught.value.exit_code == (5 if "/" in target else 2)


def test_empty_folder_and_foreign_formats(tmp_path):
    with pytest.raises(errors.NotACheckpoint, match="no weights"):
        locate(tmp_path)
    for name in ("model.ort", "training_args.bin"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(errors.UnsupportedFormat, match=r"model\.ort, training_args\.bin"):
        locate(tmp_path)
    with pytest.raises(errors.UnsupportedFormat, match=r"model\.ort"):
        locate(tmp_path / "model.ort")


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"]
)
def test_an_index_cannot_name_files_outside(tmp_path, name):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(errors.UnsafePath):
        locate(tmp_path)


def test_a_link_may_not_leave_the_folder_but_for_the_hub_cache(tmp_path):
    (tmp_path / "secret").write_bytes(ONE)
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "w.safetensors").symlink_to(tmp_path / "secret")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "w.safetensors"}}))
    with pytest.raises(errors.UnsafePath, match="leaves"):
        locate(folder)

    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    blobs = tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1234").write_bytes(ONE)
    (snapshot / "w.safetensors").symlink_to(blobs / "1234")
    (snapshot / INDEX).write_text(json.dumps({"weight_map": {"w": "w.safetensors"}}))
    assert locate(snapshot).weights == ("w.safetensors",)


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"weight_map": {"w": 3}}', "[" * 100_000])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(errors.CorruptCheckpoint):
        locate(tmp_path)


def test_all_missing_shards_are_named_at_once(tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    with pytest.raises(errors.MissingShard, match=r"2 of 2 .*1\.safetensors, 2\.safetensors"):
        locate(tmp_path)
