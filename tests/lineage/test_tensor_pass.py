from __future__ import annotations

import tracemalloc

import numpy as np

from hilm.lineage import records
from hilm.lineage.anatomy import dissect
from hilm.lineage.tensor_pass import TensorPass, Traits
from hilm.weights.checkpoint import open_checkpoint
from tests.tiny import write_model


def traits_of(folder, name, tensors):
    return read(write_model(folder, tensors), name)


def read(folder, name):
    with open_checkpoint(folder) as checkpoint:
        anatomy = dissect(checkpoint)
        matrices = [m for m in anatomy.matrices if m.info.name == name]
        traits = Traits()
        work = TensorPass(checkpoint, anatomy, None, checkpoint.tensors[name], matrices, traits)
        for block in checkpoint.blocks(frozenset([name]), include_integer=True, poison=True):
            work.update(block)
        work.finish()
        return traits


def columns(found, dtype):
    """Rows of codes or of profiles, by column."""
    return np.array([row for _, row in found], dtype)


def digest(traits):
    ((_, found, _),) = traits.digests
    return found


def test_a_stack_is_the_sum_of_its_matrices(tmp_path):
    stack = np.random.default_rng(0).standard_normal((4, 48, 64)).astype(np.float32)
    whole = traits_of(tmp_path / "stack", "w", {"w": stack})
    parts = [traits_of(tmp_path / str(i), "w", {"w": part}) for i, part in enumerate(stack)]
    np.testing.assert_array_equal(whole.position, sum(p.position for p in parts))
    for found, dtype in (("codes", records.CODES), ("profiles", records.PROFILES)):
        rows = columns(getattr(whole, found), dtype)
        assert set(rows["exact"]) == {int.from_bytes(digest(whole).exact, "little")}
        for field in dtype.names[1:]:
            alone = [columns(getattr(part, found), dtype)[field][0] for part in parts]
            np.testing.assert_array_equal(rows[field], alone)


def test_traits_of_two_tensors_add_up(tmp_path):
    matrices = np.random.default_rng(3).standard_normal((2, 48, 64)).astype(np.float32)
    matrices[1, 0, 0] = np.nan
    first, second = (traits_of(tmp_path / str(i), "w", {"w": m}) for i, m in enumerate(matrices))
    position = first.position.copy()
    first.add(second)
    np.testing.assert_array_equal(first.position, position)  # the second has no sketch
    assert (len(first.digests), len(first.codes), len(first.profiles), first.nonfinite) == (2, 1, 2, 1)


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
    assert digest(found).prefix is None


def test_tables_get_a_digest_of_their_leading_rows(tmp_path):
    rng = np.random.default_rng(2)
    table = rng.standard_normal((3000, 64)).astype(np.float32)
    model = {"w": table, **{f"m{i}": rng.standard_normal((64, 64)).astype(np.float32) for i in range(3)}}
    longer = model | {"w": np.concatenate([table, np.ones((64, 64), np.float32)])}
    changed = model | {"w": np.concatenate([table[:1] + 1, table[1:]])}
    found = [traits_of(tmp_path / str(i), "w", t) for i, t in enumerate((model, longer, changed))]
    assert digest(found[0]).prefix == digest(found[1]).prefix != digest(found[2]).prefix
    assert digest(found[0]).exact != digest(found[1]).exact
