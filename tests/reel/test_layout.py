from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import HeaderError, UnsupportedFormat
from hilm.reel.layout import CHUNK_ELEMENTS, SLAB_BYTES, SLAB_ELEMENTS, chunk_lengths, coded_view, cut_slabs


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
        coded_view("Q9_X", (32,))
    with pytest.raises(HeaderError):
        coded_view("Q4_K", (32,))
    assert coded_view("Q4_K", (3, 512)) == (1, 3 * 288, 1)


lengths = st.one_of(
    st.integers(0, 5), st.integers(0, 1 << 26), st.integers(SLAB_ELEMENTS - 2, SLAB_ELEMENTS + 2)
)


@given(st.integers(0, 40), lengths, st.sampled_from([1, 2, 4, 8]))
def test_slabs_tile_the_matrix_and_stay_small(rows, columns, word):
    slabs, by_element = cut_slabs(rows, columns, word)
    limit = min(SLAB_ELEMENTS, SLAB_BYTES // word)
    assert by_element == (bool(rows) and columns > limit)
    unit, position = (1 if by_element else columns), 0
    for slab in slabs:
        assert slab.begin == position
        assert slab.elements == (slab.end - slab.begin) * unit
        assert 0 < slab.elements <= limit
        if by_element:
            assert slab.rows == 1
            assert slab.begin // columns == (slab.end - 1) // columns
        else:
            assert slab.columns == columns
            assert slab.end == rows or slab.elements + columns > limit  # as many rows as fit
        position = slab.end
    assert position * unit == rows * columns


@given(st.integers(0, SLAB_ELEMENTS))
def test_chunks_tile_the_slab(elements):
    found = chunk_lengths(elements)
    assert sum(found) == elements
    assert all(length == CHUNK_ELEMENTS for length in found[:-1])
    assert all(0 < length <= CHUNK_ELEMENTS for length in found)
