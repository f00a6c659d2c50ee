from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hilm import errors
from hilm.weights import open_checkpoint
from hilm.weights.tensor import Entry, Listing
from hilm.weights.tensor_table import check_splits, merge_listings
from tests.weights.other_formats import write_gguf


def listing(*names, aliases=()):
    entries = [Entry(name, "F32", (1,), 4 * i, 4 * i + 4) for i, name in enumerate(names)]
    return Listing((*entries, *(Entry(a, "F32", (1,), 0, 4, alias_of=o) for a, o in aliases)))


def test_an_alias_whose_owner_the_index_hides_stands_for_itself():
    notes = []
    listings = [listing("a", aliases=[("b", "a")]), listing("a")]
    tensors, _ = merge_listings(("1", "2"), listings, {"a": "2", "b": "1"}, notes)
    assert (tensors["b"].alias_of, tensors["b"].span.file) == (None, 0)
    assert (tensors["a"].alias_of, tensors["a"].span.file) == (None, 1)
    assert notes == ["a in 1 is shadowed by the index"]


def test_torch_shards_follow_their_index(tmp_path):
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    torch.save({"a": torch.ones(2), "both": torch.zeros(2)}, tmp_path / names[0])
    torch.save({"b": torch.ones(3).expand(3), "both": torch.ones(2)}, tmp_path / names[1])
    with pytest.raises(errors.DuplicateTensor, match="both"):
        open_checkpoint(tmp_path)
    weight_map = {"a": names[0], "b": names[1], "both": names[1]}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "both"]
        np.testing.assert_array_equal(checkpoint.array("both"), [1, 1])


def split(folder, count, numbers):
    folder.mkdir()
    for i, number in enumerate(numbers):
        path = folder / f"q-{i + 1:05d}-of-{len(numbers):05d}.gguf"
        facts = {"split.no": number, "split.count": count} if count else None
        write_gguf(path, {f"t{i}": torch.full((1, 32), float(i))}, facts)
    return folder


def test_a_split_gguf_is_one_checkpoint_from_any_part(tmp_path):
    folder = split(tmp_path / "m", 3, [0, 1, 2])
    for target in (folder, folder / "q-00001-of-00003.gguf", folder / "q-00002-of-00003.gguf"):
        with open_checkpoint(target) as checkpoint:
            assert list(checkpoint.tensors) == ["t0", "t1", "t2"]
            assert checkpoint.array("t2").tolist() == [[2.0] * 32]


@pytest.mark.parametrize(
    ("count", "numbers", "error"),
    [
        (3, [0, 1], errors.MissingShard),
        (2, [1, 0], errors.CorruptCheckpoint),
        (2, [0, 0], errors.CorruptCheckpoint),
        (0, [0, 1], errors.MissingShard),
    ],
)
def test_a_split_must_be_whole_and_in_order(tmp_path, count, numbers, error):
    with pytest.raises(error):
        open_checkpoint(split(tmp_path / "m", count, numbers))


def test_a_renamed_part_is_not_taken_for_the_whole(tmp_path):
    folder = split(tmp_path / "m", 2, [0, 1])
    (folder / "q-00001-of-00002.gguf").rename(tmp_path / "whole.gguf")
    with pytest.raises(errors.MissingShard, match="one of 2"):
        open_checkpoint(tmp_path / "whole.gguf")


def test_parts_of_two_splits_do_not_mix():
    parts = [Listing((), {"split.no": str(i), "split.count": c}) for i, c in enumerate("23")]
    with pytest.raises(errors.CorruptCheckpoint, match="0 of 2, 1 of 3"):
        check_splits(parts)
