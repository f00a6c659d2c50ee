"""Files of PyTorch for tests, written by PyTorch itself and read back without it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from hilm.weights.strided import read_strided
from hilm.weights.torch_zip import parse_archive

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
DTYPES_OF_TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def save(value, *, zipped=True):
    target = io.BytesIO()
    torch.save(value, target, _use_new_zipfile_serialization=zipped)
    return target.getvalue()


def parse(data):
    return parse_archive(lambda start, stop: data[start:stop], len(data))


def values(data, entry):
    def read_into(start, out):
        assert entry.start <= start <= start + len(out) <= entry.stop
        out[:] = np.frombuffer(data, np.uint8)[start : start + len(out)]

    return read_strided(read_into, entry).tobytes()


def stored(value):
    """A tensor's bytes in C order, as its own library gives them."""
    return bytes(
        value.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()
    )


def check(data, expected):
    """The entries of a file are exactly these tensors."""
    entries = {entry.name: entry for entry in parse(data).entries}
    assert entries.keys() == expected.keys()
    for name, value in expected.items():
        entry = entries[name]
        assert DTYPES_OF_TORCH[entry.dtype] == value.dtype
        assert entry.shape == tuple(value.shape)
        assert (entry.strides is None) == value.is_contiguous()
        assert values(data, entry) == stored(value)
        if entry.strides is None:
            assert data[entry.start : entry.stop] == stored(value)
    return entries
