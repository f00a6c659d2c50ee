from __future__ import annotations

import math
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hilm.errors import UsageError
from hilm.reel import preview
from hilm.reel.curve import d2xy
from hilm.reel.preview import (
    CELL,
    COLOURS,
    GAP,
    HEADER,
    INK,
    LABEL,
    MARGIN,
    PAPER,
    SIDE,
    Frame,
    Sampler,
    contact_sheets,
    draw_sample,
    draw_tensor,
)

RNG = np.random.default_rng(7)


def tensor_frame(values, *, name="w", dtype="F32", shape=(1,), sampled=False) -> Frame:
    return draw_tensor(np.asarray(values, np.float32), name=name, dtype=dtype, shape=shape, sampled=sampled)


def slow_grey(value: float, scale: float) -> int:
    return min(max(128 + round(24 * value / scale), 0), 255) if math.isfinite(value) else 255


def read_caption(frame: Frame) -> list[str]:
    """Recognise the characters of a caption by their exact shapes."""
    strip = frame.pixels[len(frame.picture) :]
    unit = max(1, strip.shape[1] // 256)
    small = strip[::unit, ::unit] == INK
    room = (len(small) + 3) // 10
    top = (len(small) - room * 10 + 3) // 2
    shapes = {preview._FONT[code].tobytes(): chr(code + 32) for code in reversed(range(95))}
    shapes[preview._FONT[95].tobytes()] = preview.SIGMA
    columns = range(1, small.shape[1] - 4, 6)
    return [
        "".join(
            shapes[small[row : row + 7, column : column + 5].astype(np.uint8).tobytes()] for column in columns
        ).rstrip()
        for row in range(top, top + room * 10, 10)
    ]


class TestScale:
    @given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
    @settings(max_examples=100, deadline=None)
    def test_is_the_power_of_two_nearest_to_sigma_on_a_log_axis(self, values):
        frame = draw_sample(np.array(values, np.float32), name="w")
        sigma = math.sqrt(math.fsum(v * v for v in values) / len(values))
        assert frame.sigma == pytest.approx(sigma, rel=1e-12)
        if sigma:
            assert abs(math.log2(frame.scale) - math.log2(sigma)) <= 0.5 + 1e-12
        assert math.frexp(frame.scale)[0] == 0.5

    @given(st.integers(-60, 60))
    @settings(max_examples=20, deadline=None)
    def test_scaled_weights_look_the_same_and_differ_in_the_record(self, power):
        values = np.random.default_rng(3).standard_normal(500).astype(np.float32)
        frame, scaled = tensor_frame(values), tensor_frame(values * np.float32(2.0**power))
        assert scaled.scale == frame.scale * 2.0**power
        np.testing.assert_array_equal(frame.picture, scaled.picture)

    def test_goes_up_on_a_tie(self):
        assert [tensor_frame([0.0, 2.0**power]).scale for power in range(-3, 3)] == [
            2.0**p for p in range(-3, 3)
        ]

    @pytest.mark.parametrize("values", [[], [0.0, 0.0], [np.nan, np.inf, -np.inf]])
    def test_is_one_where_sigma_is_nothing(self, values):
        frame = tensor_frame(values)
        assert (frame.sigma, frame.scale) == (0.0, 1.0)

    def test_ignores_values_that_are_not_finite(self):
        assert tensor_frame([0.25, np.nan, -0.25, np.inf]).sigma == 0.25


class TestPicture:
    @pytest.mark.parametrize(("count", "order"), [(1, 0), (4, 1), (5, 2), (384, 5), (1500, 6)])
    def test_lays_values_along_the_curve_as_equal_squares(self, count, order):
        values = RNG.standard_normal(count).astype(np.float32) * 3
        values[count // 2] = np.nan
        frame = tensor_frame(values)
        cell = SIDE >> order
        expected = np.full((1 << order, 1 << order), 128)
        x, y = d2xy(order)
        for step, value in enumerate(values.tolist()):
            expected[y[step], x[step]] = slow_grey(value, frame.scale)
        np.testing.assert_array_equal(frame.picture, expected.repeat(cell, 0).repeat(cell, 1))

    def test_draws_every_value_of_a_full_picture(self):
        values = RNG.standard_normal(SIDE * SIDE).astype(np.float32)
        frame = tensor_frame(values)
        x, y = d2xy(9)
        drawn = frame.picture[y, x]
        assert drawn[:2000].tolist() == [slow_grey(v, frame.scale) for v in values[:2000].tolist()]
        assert drawn[-2000:].tolist() == [slow_grey(v, frame.scale) for v in values[-2000:].tolist()]

    def test_rounds_halves_to_even_and_clamps(self):
        sixteenths = [1, 3, 5, -1, -3, 1000, -1000]  # of s; 24 / 16 = 1.5 grey levels
        values = np.array(sixteenths, np.float32) * 2 / 16
        frame = tensor_frame(np.concatenate([values, np.full(16377, 1.5, np.float32)]))
        assert frame.scale == 2.0
        x, y = d2xy(7)
        greys = frame.picture[::4, ::4][y, x]
        assert greys[:7].tolist() == [130, 132, 136, 126, 124, 255, 0]

    def test_is_zero_grey_where_there_is_no_value(self):
        assert np.all(tensor_frame([]).picture == 128)
        assert np.all(tensor_frame(np.zeros(7)).picture == 128)

    def test_draws_what_is_not_finite_as_white(self):
        x, y = d2xy(1)
        picture = draw_sample(np.array([np.nan, np.inf, -np.inf, 0], np.float32), name="w").picture
        assert picture[y, x].tolist() == [255, 255, 255, 128]

    def test_refuses_more_values_than_pixels(self):
        with pytest.raises(UsageError, match="262145 values"):
            tensor_frame(np.zeros(SIDE * SIDE + 1))


class TestSampler:
    @pytest.mark.parametrize("numel", [0, 1, 1000, SIDE * SIDE, SIDE * SIDE + 1, 700_001])
    def test_keeps_the_documented_elements(self, numel):
        values = RNG.standard_normal(numel).astype(np.float32)
        kept = min(numel, SIDE * SIDE)
        sampler = Sampler(numel)
        sampler.add(0, values)
        assert sampler.sampled == (numel > SIDE * SIDE)
        np.testing.assert_array_equal(sampler.values, values[[i * numel // kept for i in range(kept)]])

    @given(st.lists(st.integers(0, 300_000), max_size=8))
    @settings(max_examples=15, deadline=None)
    def test_does_not_depend_on_how_the_tensor_is_cut(self, cuts):
        values = np.arange(300_000, dtype=np.float32)
        whole, pieces = Sampler(values.size), Sampler(values.size)
        whole.add(0, values)
        bounds = [0, *sorted(cuts), values.size]
        for start, stop in pairwise(bounds):
            pieces.add(start, values[start:stop])
        np.testing.assert_array_equal(whole.values, pieces.values)

    def test_counts_past_every_real_tensor(self):
        positions = Sampler(2**62 - 1)._positions
        assert positions[-1] == (SIDE * SIDE - 1) * (2**62 - 1) // (SIDE * SIDE)
        assert np.all(np.diff(positions) > 0)


class TestCaption:
    def test_of_a_tensor_says_what_it_is(self):
        frame = tensor_frame([0.5, -0.5], name="layer.0.bias", dtype="BF16", shape=(2, 1), sampled=False)
        assert frame.pixels.shape == (576, 512)
        assert read_caption(frame) == ["layer.0.bias", f"BF16 2x1  {preview.SIGMA} 0.5", ""]

    def test_marks_samples_and_scalars(self):
        assert "sampled" in read_caption(tensor_frame([1.0], sampled=True))[1]
        assert read_caption(tensor_frame([1.0], shape=()))[1] == f"F32 scalar  {preview.SIGMA} 1"

    def test_breaks_a_long_name_after_a_dot(self):
        name = "model.layers.60.mlp.experts.255.gate_proj.weight_scale_inv"
        lines = read_caption(tensor_frame([1.0], name=name))
        assert lines[:2] == ["model.layers.60.mlp.experts.255.gate_proj.", "weight_scale_inv"]
        assert lines[2].startswith("F32")

    def test_keeps_both_ends_of_an_endless_name(self):
        lines = read_caption(tensor_frame([1.0], name="a" * 40 + "." + "b" * 300 + ".end"))
        assert lines[0] == "a" * 40 + "."
        assert lines[1] == ".." + "b" * 36 + ".end"

    def test_draws_every_printable_character_differently(self):
        assert len({glyph.tobytes() for glyph in preview._FONT}) == len(preview._FONT) == 96
        for text in ("".join(map(chr, range(32 + part, 127, 3))).strip() for part in range(3)):
            assert read_caption(tensor_frame([1.0], name=text))[0] == text

    def test_draws_a_question_mark_for_what_the_font_lacks(self):
        assert read_caption(tensor_frame([1.0], name="größe\n"))[0] == "gr??e?"

    def test_is_ink_on_paper(self):
        assert set(np.unique(tensor_frame([1.0]).pixels[512:])) == {INK, PAPER}

    @pytest.mark.parametrize(("side", "lines"), [(64, 1), (128, 1), (256, 3), (1024, 3)])
    def test_of_a_sample_is_an_eighth_of_its_side(self, side, lines):
        frame = draw_sample(np.ones(3, np.float32), name="x/y", side=side)
        assert frame.pixels.shape == (side + side // 8, side)
        assert read_caption(frame) == ["x/y", f"3 values  {preview.SIGMA} 1", ""][:lines]

    @given(st.text(max_size=120), st.sampled_from([2, 32, 64, 128, 256, 512]))
    @settings(max_examples=40, deadline=None)
    def test_never_spills_over(self, name, side):
        frame = draw_sample(np.ones(1, np.float32), name=name, side=side)
        assert np.all(np.isin(frame.pixels[side:], [INK, PAPER]))


class TestSampleFrames:
    @pytest.mark.parametrize(
        ("count", "side"), [(1, 2), (4, 2), (5, 4), (1024, 32), (1025, 64), (20000, 256)]
    )
    def test_take_the_smallest_even_side(self, count, side):
        frame = draw_sample(np.ones(count, np.float32), name="m")
        assert frame.picture.shape == (side, side)
        assert all(length % 2 == 0 for length in frame.pixels.shape)
        assert np.count_nonzero(frame.picture == 128 + 24) == count
        assert np.count_nonzero(frame.picture == 128) == side * side - count

    def test_of_one_file_share_a_side(self):
        assert draw_sample(np.ones(3, np.float32), name="m", side=32).picture.shape == (32, 32)

    @pytest.mark.parametrize("side", [-2, 0, 1, 3, 48, 4096])
    def test_refuse_other_sides(self, side):
        with pytest.raises(UsageError, match="side"):
            draw_sample(np.ones(1, np.float32), name="m", side=side)

    def test_refuse_more_than_the_largest_side_holds(self):
        with pytest.raises(UsageError, match="side 4096"):
            draw_sample(np.ones(2048**2 + 1, np.float32), name="m")

    def test_refuse_values_that_do_not_fit(self):
        with pytest.raises(UsageError, match="5 values"):
            draw_sample(np.ones(5, np.float32), name="m", side=2)


class TestContactSheet:
    def open(self, png: bytes) -> np.ndarray:
        with Image.open(BytesIO(png)) as image:
            assert image.format == "PNG"
            return np.asarray(image)

    def test_colours_thumbnails_as_the_legend_says(self):
        frame = tensor_frame(RNG.standard_normal(SIDE * SIDE))
        (png,) = contact_sheets([("a", frame), ("b", tensor_frame([-1.0, 1.0]))], model="m", parameters=3)
        sheet = self.open(png)
        first = sheet[HEADER : HEADER + CELL, MARGIN : MARGIN + CELL]
        np.testing.assert_array_equal(first, COLOURS[frame.picture[::4, ::4]])
        left = MARGIN + CELL + GAP
        assert sheet[HEADER, left].tolist() == COLOURS[128 - 24].tolist()
        bar = sheet[24]
        for grey in (128 - 120, 128 - 24, 128, 128 + 24, 128 + 120):
            assert np.any(np.all(bar == COLOURS[grey], axis=1))

    def test_enlarges_small_pictures(self):
        frame = draw_sample(np.array([1, 0, 0, 0], np.float32), name="m")
        sheet = self.open(next(contact_sheets([("a", frame)], model="m", parameters=4)))
        quarter = sheet[HEADER : HEADER + 64, MARGIN : MARGIN + 64]
        assert np.all(quarter == COLOURS[frame.picture[0, 0]])

    def test_starts_a_new_sheet_after_256_cells_and_draws_lazily(self):
        frame, taken = draw_sample(np.ones(1, np.float32), name="m"), []
        cells = ((f"t{taken.append(i) or i}", frame) for i in range(257))
        sheets = contact_sheets(cells, model="m", parameters=1)
        first = self.open(next(sheets))
        assert len(taken) == 256
        assert first.shape[0] == HEADER + 32 * (CELL + LABEL) + MARGIN
        (second,) = sheets
        assert self.open(second).shape == (HEADER + CELL + LABEL + MARGIN, first.shape[1], 3)

    def test_of_nothing_is_no_sheet(self):
        assert list(contact_sheets([], model="m", parameters=0)) == []

    def test_labels_differ_and_stay_in_their_cell(self):
        frame = tensor_frame([1.0])
        names = [
            "model.layers.60.mlp.experts.254.gate_proj.weight",
            "model.layers.60.mlp.experts.255.gate_proj.weight",
        ]
        sheet = self.open(next(contact_sheets([(n, frame) for n in names], model="x" * 500, parameters=1)))
        top = HEADER + CELL
        labels = [sheet[top : top + LABEL, MARGIN + i * (CELL + GAP) :][:, : CELL + GAP] for i in range(2)]
        assert np.any(labels[0] != labels[1])
        assert all(np.all(label[:, -4:] == 255) and np.all(label[-3:] == 255) for label in labels)


def test_colours_diverge_evenly_from_zero():
    linear = (COLOURS / 255.0) ** 2.2
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(luminance[:129]) > -1e-3)
    assert np.all(np.diff(luminance[128:]) < 1e-3)
    assert np.abs(luminance[1:128] - luminance[:128:-1]).max() < 0.06
    assert np.all(COLOURS[:120, 2] > COLOURS[:120, 0])
    assert np.all(COLOURS[137:, 0] > COLOURS[137:, 2])
