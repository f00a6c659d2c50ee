from __future__ import annotations

import tracemalloc

import numpy as np

from hilm.lineage.anatomy import dissect
from hilm.lineage.tensor_pass import TensorPass
from hilm.weights.checkpoint import open_checkpoint
from tests.tiny import write_model


def traits_of(folder, name, tensors):
    return read(write_model(folder, tensors), name)


def read(folder, name):
    with open_checkpoint(folder) as checkpoint:
        anatomy = dissect(checkpoint)
        matrices = [m for m in anatomy.matrices if m.info.name == name]
        work = TensorPass(checkpoint, anatomy, None, checkpoint.tensors[name], matrices)
        for block in checkpoint.blocks(frozenset([name]), include_integer=True, poison=True):
            work.update(block)
        return work.finish()


def test_a_stack_is_the_sum_of_its_matrices(tmp_path):
    stack = np.random.default_rng(0).standard_normal((4, 48, 64)).astype(np.float32)
    whole = traits_of(tmp_path / "stack", "w", {"w": stack})
    parts = [traits_of(tmp_path / str(i), "w", {"w": part}) for i, part in enumerate(stack)]
    np.testing.assert_array_equal(whole.position, sum(p.position for p in parts))
    np.testing.assert_array_equal(whole.histogram, sum(p.histogram for p in parts))
    assert [row["norm"] for row in whole.codes] == [p.codes["norm"][0] for p in parts]
    np.testing.assert_array_equal(whole.profiles["figures"], [p.profiles["figures"][0] for p in parts])
    assert set(whole.codes["exact"]) == {int.from_bytes(whole.digest.exact, "little")}


def test_memory_does_not_grow_with_the_stack(tmp_path):
    """The state of a matrix, 128 kB of sample among it, goes when its last row was seen."""
    stack = np.random.default_rng(1).standard_normal((80, 64, 512)).astype(np.float32)
    peaks = []
    for count in (16, 80):
        folder = write_model(tmp_path / str(count), {"w": stack[:count]})
        tracemalloc.start()
        read(folder, "w")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 64 * 16_384


def test_a_tensor_without_matrices_has_a_digest_alone(tmp_path):
    found = traits_of(tmp_path, "b", {"b": np.ones(7, np.float32)})
    assert len(found.codes) == len(found.profiles) == 0
    assert not found.position.any()
    assert found.digest.prefix is None


def test_tables_get_a_digest_of_their_leading_rows(tmp_path):
    rng = np.random.default_rng(2)
    table = rng.standard_normal((3000, 64)).astype(np.float32)
    model = {"w": table, **{f"m{i}": rng.standard_normal((64, 64)).astype(np.float32) for i in range(3)}}
    longer = model | {"w": np.concatenate([table, np.ones((64, 64), np.float32)])}
    changed = model | {"w": np.concatenate([table[:1] + 1, table[1:]])}
    found = [traits_of(tmp_path / str(i), "w", t) for i, t in enumerate((model, longer, changed))]
    assert found[0].digest.prefix == found[1].digest.prefix != found[2].digest.prefix
    assert found[0].digest.exact != found[1].digest.exact
