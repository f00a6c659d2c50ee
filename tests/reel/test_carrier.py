from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import ChecksumMismatch, UsageError
from hilm.reel.carrier import LAYOUTS, Carried, Placement, carrier_settings, pack_data, too_many_escapes
from hilm.reel.curve import cells
from hilm.weights.dtypes import DTYPES

NO_INDICES = np.empty(0, np.int64)


@given(st.lists(st.integers(-(1 << 31) + 1, (1 << 31) - 1), min_size=1, max_size=50))
def test_indices_come_back_whether_grey_values_hold_them_or_not(values):
    indices = np.array(values, np.int32)
    carried = Carried.of_indices(indices)
    assert (carried.indices() == indices).all()
    beyond = [v for v in values if abs(v) > 127]
    assert carried.data == len(beyond).to_bytes(4, "little") + np.array(beyond, "<i8").tobytes()
    assert carried.pixels.tolist() == [0 if abs(v) > 127 else v + 128 for v in values]


@pytest.mark.parametrize(
    ("pixels", "data"),
    [
        ([0, 5], pack_data(NO_INDICES)),
        ([7, 5], pack_data(np.array([200]))),
        ([0], pack_data(np.array([200]), b"x")),
        ([0], pack_data(np.array([200]))[:-1]),
        ([0], pack_data(np.array([1 << 31]))),
        ([0], b""),
    ],
)
def test_records_that_belong_to_other_frames_are_refused(pixels, data):
    with pytest.raises(ChecksumMismatch):
        Carried(np.array(pixels, np.uint8), data).indices()


def test_a_slab_may_have_an_escape_in_a_thousand():
    indices = np.zeros(2000, np.int32)
    indices[:2] = 300
    assert not too_many_escapes([Carried.of_indices(indices)])
    indices[2] = -300
    assert too_many_escapes([Carried.of_indices(indices)])


def places(rows, columns, layout):
    """Frame, line and column of every element in the order of rows: the specification, one at a time."""
    curve = cells(9)
    for row in range(rows):
        for column in range(columns):
            if layout == "raster":
                across = -(-columns // 512)
                yield row // 512 * across + column // 512, row % 512, column % 512
            else:
                frame, at = divmod(row * columns + column, 512 * 512)
                yield frame, *divmod(int(curve[at]) if layout == "hilbert" else at, 512)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (600, 530), (513, 512), (1, 262_145)])
def test_every_element_lies_where_the_format_says(shape, layout):
    place, pixels = (
        Placement(*shape, layout),
        np.random.default_rng(0).integers(1, 256, shape).astype(np.uint8),
    )
    arranged, at, frames = place.arrange(pixels.reshape(-1)), 0, []
    for number, length in enumerate(place.lengths):
        frames.append(place.draw(number, arranged[at : at + length], 0))
        assert (place.read(number, frames[-1]) == arranged[at : at + length]).all()
        at += length
    assert at == pixels.size == sum(np.count_nonzero(frame) for frame in frames)
    where = np.array(list(places(*shape, layout)))
    assert (np.array(frames)[tuple(where.T)] == pixels.reshape(-1)).all()
    assert (place.restore(arranged) == pixels.reshape(-1)).all()


@settings(max_examples=30)
@given(st.integers(1, 1200), st.integers(1, 1200), st.sampled_from(LAYOUTS))
def test_words_are_cut_where_frames_are(rows, columns, layout):
    place = Placement(rows, columns, layout)
    ranges = place.view(DTYPES["BF16"]).ranges()
    assert [stop - start for start, stop in ranges] == place.lengths
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows * columns
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


def test_tiles_that_are_an_eighth_empty_are_padded():
    assert Placement(1024, 384, "raster").padded
    assert not Placement(1024, 460, "raster").padded
    assert not Placement(1024, 384, "flat").padded


def test_settings_name_the_carrier_unless_it_is_the_packed_one():
    assert carrier_settings("packed", "auto") == {}
    assert carrier_settings("ffv1", "hilbert") == {"carrier": "ffv1", "layout": "hilbert"}
    for wrong in (("av1", "auto"), ("ffv1", "spiral")):
        with pytest.raises(UsageError):
            carrier_settings(*wrong)
