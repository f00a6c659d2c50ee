from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hilm.errors import InputError, UsageError
from hilm.parity.inputs import (
    MEAN,
    STD,
    Item,
    Reading,
    fit_frames,
    grid_keys,
    parse_inputs,
    read_arrays,
    read_inputs,
    virtual_slots,
)
from tests.parity.media import write_clip, write_picture

READING = Reading()


def test_names_kinds_and_paths():
    assert parse_inputs(["a=x=y.png", "b=video:c.bin"]) == [("a", "", "x=y.png"), ("b", "video", "c.bin")]


@pytest.mark.parametrize("texts", [[], ["a"], ["a="], ["=x"], ["a b=x"], ["a=x", "a=y"], ["é=x"]])
def test_bad_names_are_usage_errors(texts):
    with pytest.raises(UsageError):
        parse_inputs(texts)


def test_frames_must_fit_the_virtual_clip():
    for options in ({"num_frames": 0}, {"num_frames": 65}):
        with pytest.raises(UsageError):
            Reading(**options)
    assert Reading(num_frames=65, virtual_frames=65).num_frames == 65


def test_documented_slots():
    assert virtual_slots(8, 64) == (0, 9, 18, 27, 36, 45, 54, 63)
    assert virtual_slots(3, 64) == (0, 32, 63)
    assert virtual_slots(1, 64) == (0,)


@pytest.mark.parametrize(
    ("fit", "shape"), [("resize", (42, 56)), ("pad", (42, 56)), ("crop", (28, 42)), ("error", None)]
)
def test_sides_are_fitted_to_whole_patches(tmp_path, fit, shape):
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    reading = replace(READING, fit=fit)
    if shape is None:
        with pytest.raises(InputError, match="50 x 40"):
            fit_frames(tmp_path, frames, reading)
    else:
        assert fit_frames(tmp_path, frames, reading).shape == (2, *shape, 3)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (13, 13)])
def test_tiny_pictures(tmp_path, size):
    frames = np.zeros((1, *size, 3), np.uint8)
    for fit in ("resize", "pad"):
        fitted = fit_frames(tmp_path, frames, replace(READING, fit=fit))
        assert min(fitted.shape[1:3]) >= 14
    with pytest.raises(InputError):
        fit_frames(tmp_path, frames, replace(READING, fit="crop"))


def test_whole_patches_stay_untouched(tmp_path):
    frames = np.zeros((1, 28, 42, 3), np.uint8)
    assert fit_frames(tmp_path, frames, READING) is frames


def test_pixels_are_normalised_exactly():
    frames = np.random.default_rng(0).integers(0, 256, (2, 14, 28, 3), np.uint8)
    pixels = Item("a", "video", "a", frames).pixels
    assert (pixels.shape, pixels.dtype) == ((1, 3, 2, 14, 28), np.float32)
    assert pixels[0, 1, 1, 3, 5] == (np.float32(frames[1, 3, 5, 1]) / np.float32(255) - MEAN[1]) / STD[1]


def test_the_facts_are_the_documented_ones(tmp_path):
    picture, clip = read_inputs(
        [
            ("i", "", str(write_picture(tmp_path / "a.png"))),
            ("v", "", str(write_clip(tmp_path / "a.mp4", 20))),
        ],
        READING,
    )
    assert list(picture.facts)[:3] == ["path", "width", "height"]
    assert (picture.facts["shape"], picture.facts["grid_thw"]) == ([1, 3, 56, 70], [1, 4, 5])
    assert (clip.facts["shape"], clip.facts["grid_thw"]) == ([1, 3, 8, 56, 70], [8, 4, 5])
    assert {"total_frames", "sampled_frames", "frame_indices", "fps"} <= clip.facts.keys()
    assert clip.slots == (0, 9, 18, 27, 36, 45, 54, 63)


def test_everything_is_looked_at_before_anything_is_decoded(tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(write_picture(tmp_path / "a.png").read_bytes()[:500])
    with pytest.raises(InputError, match=r"none\.png"):
        read_inputs([("a", "", str(cut)), ("b", "", str(tmp_path / "none.png"))], READING)


def test_a_reduced_input_is_the_centre_of_its_first_frames():
    frames = np.random.default_rng(0).integers(0, 256, (8, 14 * 20, 14 * 30, 3), np.uint8)
    item = Item("a", "video", "a", frames, slots=tuple(range(8)), adjustable=True)
    small = item.reduced()
    assert np.prod(small.grid) <= 1024
    assert (small.grid[0], small.slots) == (4, (0, 1, 2, 3))
    top = (20 - small.grid[1]) // 2 * 14
    assert np.array_equal(
        small.frames[0, 0], frames[0, top, (30 - small.grid[2]) // 2 * 14 :][: 14 * small.grid[2]]
    )
    assert replace(item, adjustable=False).reduced().frames is frames


def test_keys_are_frame_row_column():
    assert grid_keys(2, 1, 2).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 1]]


def test_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", input_ids=np.arange(3)[None])
    assert read_arrays(tmp_path / "a.npz")["input_ids"].shape == (1, 3)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    (tmp_path / "text.npz").write_text("nothing")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    for name in ("objects.npz", "text.npz", "cut.npz", "none.npz"):
        with pytest.raises(InputError):
            read_arrays(tmp_path / name)
