from __future__ import annotations

import pytest
import torch

from hilm.errors import UnsupportedFormat
from tests.hostile.torch_files import archive, members, pickled, storage, table, tensor
from tests.weights.torch_archives import DTYPES_OF_TORCH, FORMS, check, parse, save


@FORMS
@pytest.mark.parametrize("name", DTYPES_OF_TORCH)
def test_every_dtype(name, zipped):
    raw = torch.randint(0, 2 if name == "BOOL" else 256, (6, 8), dtype=torch.uint8)
    value = raw.view(DTYPES_OF_TORCH[name])
    check(save({"w": value, "scalar": value[0, 0].clone(), "empty": value[:0]}, zipped=zipped), {
        "w": value, "scalar": value[0, 0], "empty": value[:0]
    })  # fmt: skip


def test_packed_types_are_not_read_as_plain_ones():
    quantized = b"ctorch._utils\n_rebuild_qtensor\n(" + storage("QInt8Storage", count=8) + b"K\0tR"
    result = parse(archive(members(pickled(table(w=tensor(), q=quantized)))))
    assert [entry.name for entry in result.entries] == ["w"]
    assert "'q': 1 tensors in what torch._utils._rebuild_qtensor makes, left out" in result.notes
    for lazy in (torch.ones(2, dtype=torch.complex64).conj(), torch._neg_view(torch.ones(2))):
        with pytest.raises(UnsupportedFormat, match="lazy"):
            parse(save({"w": lazy}))
