from __future__ import annotations

import pytest

from hilm.errors import HeaderError, UnsupportedFormat
from hilm.reel.layout import coded_view


@pytest.mark.parametrize(
    ("dtype", "shape", "view"),
    [
        ("F32", (), (1, 1, 4)),
        ("BF16", (7,), (1, 7, 2)),
        ("BF16", (0, 5), (0, 0, 2)),
        ("F16", (5, 0), (5, 0, 2)),
        ("I64", (2, 3, 4), (2, 12, 8)),
        ("C64", (3, 5), (3, 10, 4)),
        ("F4", (3, 6), (1, 9, 1)),
        ("F6_E2M3", (4,), (1, 3, 1)),
    ],
)
def test_coded_view(dtype, shape, view):
    assert coded_view(dtype, shape) == view


def test_coded_view_refuses_half_bytes_and_strangers():
    with pytest.raises(HeaderError):
        coded_view("F4", (3,))
    with pytest.raises(UnsupportedFormat):
        coded_view("Q4_K", (32,))
