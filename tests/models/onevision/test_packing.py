from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import InputError
from hilm.models.onevision import grid_positions, pack, patchify, unpack, unpatchify, virtual_slots
from hilm.models.onevision.packing import segment_lengths

sizes = st.integers(1, 4)


@given(frames=sizes, h=sizes, w=sizes, patch=sizes)
def test_patches_are_cut_frame_by_frame_and_row_by_row(frames, h, w, patch):
    clip = torch.arange(2 * frames * h * w * patch**2).view(2, frames, h * patch, w * patch)
    rows = patchify(clip, patch)
    for index, (t, y, x) in enumerate(grid_positions(torch.arange(frames), h, w).tolist()):
        tile = clip[:, t, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        assert torch.equal(rows[index], tile.flatten())
    assert torch.equal(unpatchify(rows, (frames, h, w), patch), clip)
    assert torch.equal(patchify(clip[:, 0], patch), rows[: h * w])


@pytest.mark.parametrize(
    ("n", "slots"),
    [
        (1, [0]), (2, [0, 63]), (3, [0, 32, 63]), (8, [0, 9, 18, 27, 36, 45, 54, 63]),
        (16, [0, 4, 8, 13, 17, 21, 25, 29, 34, 38, 42, 46, 50, 55, 59, 63]), (64, list(range(64))),
    ],
)  # fmt: skip
def test_slots_are_spread_over_the_virtual_clip(n, slots):
    assert virtual_slots(n, 64).tolist() == slots


@given(st.integers(1, 200).flatmap(lambda frames: st.tuples(st.integers(1, frames), st.just(frames))))
def test_slots_never_collide(both):
    n, frames = both
    slots = virtual_slots(n, frames).numpy()
    assert slots[0] == 0
    assert n == 1 or slots[-1] == frames - 1
    assert (np.diff(slots) > 0).all()


@pytest.mark.parametrize("n", [0, 65])
def test_frames_that_do_not_fit_are_refused(n):
    with pytest.raises(InputError, match=f"{n} frames do not fit the 64 slots"):
        virtual_slots(n, 64)


def test_a_pack_joins_pictures_and_clips():
    picture, clip = torch.rand(3, 4, 6), torch.rand(3, 2, 2, 4)
    batch = pack([(picture, None), (clip, torch.tensor([0, 63]))], 2)
    assert batch.grid_thw.tolist() == [[1, 2, 3], [2, 1, 2]]
    assert batch.cu_seqlens.tolist() == [0, 6, 10]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.patch_positions[6:].tolist() == [[0, 0, 0], [0, 0, 1], [63, 0, 0], [63, 0, 1]]
    parts = unpack(batch.patches, batch.grid_thw)
    assert torch.equal(parts[0], patchify(picture, 2))
    assert torch.equal(parts[1], patchify(clip, 2))


def test_bad_samples_are_refused():
    with pytest.raises(InputError, match="nothing to pack"):
        pack([], 2)
    with pytest.raises(InputError, match="multiples of 4"):
        pack([(torch.rand(3, 4, 6), None)], 4)
    with pytest.raises(InputError, match="sample 1 has 2 frames but slots"):
        pack([(torch.rand(3, 2, 2), None), (torch.rand(3, 2, 2, 2), torch.tensor([0]))], 2)
    with pytest.raises(InputError, match="multiples of 4"):
        patchify(torch.rand(3, 0, 4), 4)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([[1, 2, 3]], "the last segment, 0, ends at row 6 of 10"),
        ([[1, 2, 3], [1, 5, 1]], "segment 1, 1 x 5 x 1, ends at row 11 of 10"),
        ([[1, 2, 3], [0, 2, 2], [1, 2, 2]], "segment 1, 0 x 2 x 2"),
        ([[1, 2, 3], [1, -2, -2]], "segment 1, 1 x -2 x -2"),
        ([[1.0, 2, 5]], "must be int64"),
        ([1, 2, 5], "must be int64"),
        (np.empty((0, 3), dtype=np.int64), "must be int64"),
    ],
)
def test_grids_that_do_not_match_name_the_segment(grid, words):
    with pytest.raises(InputError, match=words):
        segment_lengths(torch.as_tensor(grid), 10)
