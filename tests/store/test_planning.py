from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import InputError, UsageError
from hilm.store.planning import Plan, free_name

FOLDERS = st.lists(st.sampled_from("abc"), min_size=1, max_size=5)


def plan(store):
    return Plan(store, "index", {}, force=False)


def test_a_model_is_called_as_its_folder_and_by_more_folders_where_that_is_taken(house, store, tmp_path):
    for parent in ("x/y", "z/y", "z/w"):
        shutil.copytree(house / "base", tmp_path / parent / "base")
    document = store.index([tmp_path / "x/y/base", tmp_path / "z/y/base", tmp_path / "z/w/base"], jobs=1)
    assert document["indexed"] == ["base", "w/base", "y/base"]
    again = store.index([tmp_path / "z/w/base", tmp_path / "x/y/base"])
    assert sorted(again["skipped"]) == ["base", "w/base"]


@given(st.lists(FOLDERS, max_size=30, unique_by=tuple))
def test_names_are_unique_and_end_with_the_models_own(folders):
    owners = {}
    for folder in folders:
        path = Path("/", *folder)
        name = free_name(str(path), path.name, bytes(path), owners)
        assert name not in owners
        assert str(path).endswith(name)
        owners[name] = bytes(path)
        assert free_name(str(path), path.name, bytes(path), owners) == name


def test_a_name_can_be_given_and_stays(house, store):
    assert store.index([house / "base"], name="mine")["indexed"] == ["mine"]
    assert store.index([house / "base"])["skipped"] == ["mine"]
    (made,) = store.encode([house / "base"])["models"]
    assert made["model"] == "mine"


def test_a_taken_name_and_a_second_name_are_refused(house, store):
    store.index([house / "base"])
    with pytest.raises(UsageError, match="another model in the store is called 'base'"):
        plan(store).add(str(house / "tuned"), "base")
    with pytest.raises(UsageError, match="is in the store as 'base'") as caught:
        plan(store).add(str(house / "base"), "other")
    assert caught.value.hint == "hilm rm base first"
    assert [model["model"] for model in store.list()["models"]] == ["base"]


def test_a_path_that_is_no_utf8_is_refused_alone(house, store, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(house / "base", odd)
    document = store.index([odd, house / "tuned"])
    assert document["indexed"] == ["tuned"]
    assert "UTF-8" in document["failed"][0]["message"]
    with pytest.raises(InputError, match="UTF-8"):
        plan(store).add(str(house / "base"), "\udcff")


def test_no_store_is_made_for_what_is_no_checkpoint(store, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(InputError):
        plan(store).add(str(tmp_path))
    assert not store.path.exists()
