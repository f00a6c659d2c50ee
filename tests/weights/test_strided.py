from __future__ import annotations

import numpy as np
import pytest
import torch

from hilm.errors import MemoryLimitError
from hilm.weights import strided
from tests.hostile.torch_files import archive, members, pickled, storage, table, tensor
from tests.weights.torch_archives import FORMS, check, parse, save, values


@FORMS
def test_views_come_in_logical_order(zipped):
    base = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    views = {
        "transposed": base[0, 0].T, "permuted": base.permute(3, 1, 0, 2), "column": base[..., 2],
        "steps": base[:, :, ::2, 1::2],
        "repeated": base[0, 0, 0].expand(7, 5), "scalar-repeated": base[0, 0, 0, 0].expand(3),
        "windows": base.reshape(-1).unfold(0, 7, 3),
        "slice": base[1], "diagonal": base[0, 0].diagonal(), "one": base[1:, 2:, 3:, 4:],
    }  # fmt: skip
    check(save(views, zipped=zipped), views)


def test_big_endian_complex_numbers_swap_each_half():
    body = table(w=tensor(storage("ComplexFloatStorage", count=2)))
    parts = np.array([1, 2, 3, 4])
    data = archive(
        members(pickled(body)) | {"a/byteorder": b"big", "a/data/0": parts.astype(">f4").tobytes()}
    )
    (entry,) = parse(data).entries
    assert entry.big_endian
    assert values(data, entry) == parts.astype("<f4").tobytes()


def test_order_is_restored_in_tiles(monkeypatch):
    base = torch.arange(5_000.0).reshape(50, 100)
    views = {"t": base.T, "odd": base[::7, ::3], "cube": base.reshape(10, 5, 100).permute(2, 0, 1)}
    data = save(views)
    monkeypatch.setattr(strided, "TILE", 1_000)
    check(data, views)


def test_what_repeats_beyond_memory_is_refused():
    data = save({"w": torch.ones(1).expand(1 << 40)})
    (entry,) = parse(data).entries
    with pytest.raises(MemoryLimitError):
        values(data, entry)
