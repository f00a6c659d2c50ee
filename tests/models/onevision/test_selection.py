from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import InputError
from hilm.models.onevision.selection import select_tokens


def index(slots, h, w):
    """Indices of whole frames at the given slots."""
    return torch.cat([torch.arange(h * w) + slot * h * w for slot in slots])[None]


def test_all_tokens_without_indices():
    sources, positions = select_tokens((2, 2, 1, 3), 8, None, None)
    assert torch.equal(sources, positions)
    assert sources[1].tolist() == [[t, 0, x] for t in range(2) for x in range(3)]
    assert select_tokens((1, 9, 1, 1), 8, None, None)[1][0, -1].tolist() == [8, 0, 0]


def test_slots_without_indices_move_positions_only():
    sources, positions = select_tokens((1, 2, 1, 1), 8, None, torch.tensor([[3, 7]]))
    assert sources[0, :, 0].tolist() == [0, 1]
    assert positions[0, :, 0].tolist() == [3, 7]


@given(st.data())
def test_indices_select_token_and_position_together(data):
    h, w, virtual = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6)))
    slots = data.draw(st.permutations(range(virtual)))[: data.draw(st.integers(1, virtual))]
    tokens = [(s, y, x) for s in slots for y in range(h) for x in range(w)]
    chosen = data.draw(st.lists(st.sampled_from(tokens), min_size=1))
    visible = torch.tensor([[(s * h + y) * w + x for s, y, x in chosen]])
    sources, positions = select_tokens((1, len(slots), h, w), virtual, visible, torch.tensor([slots]))
    assert positions[0].tolist() == [list(token) for token in chosen]
    assert sources[0].tolist() == [[slots.index(s), y, x] for s, y, x in chosen]


def test_a_permutation_of_a_full_clip_moves_tokens_too():
    visible = torch.randperm(8 * 6, generator=torch.Generator().manual_seed(0))[None]
    sources, positions = select_tokens((1, 8, 2, 3), 8, visible, None)
    assert torch.equal(sources, positions)
    assert torch.equal(sources[0] @ torch.tensor([6, 3, 1]), visible[0])


def test_whole_frames_say_their_slots():
    visible = index([1, 4, 7], 2, 3)[:, torch.randperm(18)]
    derived = select_tokens((1, 3, 2, 3), 8, visible, None)
    told = select_tokens((1, 3, 2, 3), 8, visible, torch.tensor([[1, 4, 7]]))
    assert all(torch.equal(a, b) for a, b in zip(derived, told, strict=True))


def test_without_a_virtual_clip_there_are_as_many_slots_as_frames():
    assert select_tokens((1, 3, 1, 1), None, torch.tensor([[2, 0]]), None)[0][0, :, 0].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("visible", "slots", "words"),
    [
        (index([1, 4], 2, 3)[:, 1:], None, "do not name 2 whole frames"),
        (index([1, 1], 2, 3), None, "do not name 2 whole frames"),
        (index([1, 4, 5], 2, 3), None, "do not name 2 whole frames"),
        (torch.tensor([[48]]), None, "from 48 to 48; the virtual clip has 48 tokens"),
        (torch.tensor([[-1, 3]]), None, "from -1 to 3"),
        (torch.tensor([[0], [1]]), None, r"it must be int64 \(1, tokens\)"),
        (torch.tensor([[0.0]]), None, "it must be int64"),
        (torch.zeros(1, 1, 2, 2, 3), None, "it must be int64"),
        (torch.empty(1, 0, dtype=torch.int64), None, "it must be int64"),
        (torch.tensor([[0]]), torch.tensor([[1, 4]]), r"slots without a frame: \[0\]"),
        (None, torch.tensor([[1, 1]]), "distinct and from 0 to 7"),
        (None, torch.tensor([[1, 8]]), "distinct and from 0 to 7"),
        (None, torch.tensor([1, 2]), r"must be int64 \(1, 2\)"),
        (None, torch.tensor([[1.0, 2.0]]), r"must be int64 \(1, 2\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(visible, slots, words):
    with pytest.raises(InputError, match=words):
        select_tokens((1, 2, 2, 3), 8, visible, slots)


def test_more_frames_than_slots_are_refused_with_indices():
    with pytest.raises(InputError, match="do not name 9 whole frames"):
        select_tokens((1, 9, 1, 1), 8, torch.tensor([[0]]), None)
