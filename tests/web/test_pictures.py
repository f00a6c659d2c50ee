from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import hilm
from hilm.errors import UnknownModel, UsageError
from hilm.reel.pictures import Drawable
from hilm.reel.preview import COLOURS
from hilm.web.pictures import count_values, draw_histogram, draw_legend, draw_png, lay_values, read_tensor

TENSOR = "encoder.layer.0.attention.self.query.weight"


def drawable(values, shape=None, *, sampled=False):
    values = np.asarray(values, np.float32)
    return Drawable("t", "F32", shape or values.shape, values.reshape(-1), sampled)


@pytest.mark.parametrize("name", ["base", "stranger"])  # from its reel, from its checkpoint
def test_values_are_those_of_the_checkpoint(house, name):
    truth = (
        np.asarray(hilm.read_tensor(hilm.Store(house / "store").reel("base"), TENSOR))
        if name == "base"
        else None
    )
    drawn = read_tensor(house / "store", name, TENSOR)
    if truth is not None:
        np.testing.assert_array_equal(drawn.values, truth.reshape(-1))
    laid = lay_values(drawn)
    cells = len(laid) // 8
    values, elements = np.frombuffer(laid, "<f4", cells), np.frombuffer(laid, "<i4", cells, 4 * cells)
    np.testing.assert_array_equal(values[np.argsort(elements)], drawn.values)


def test_cells_without_a_value_have_no_element():
    values, elements = np.frombuffer(lay_values(drawable(np.ones(5))), "<f4").reshape(2, 16)
    elements = elements.view("<i4")
    assert sorted(elements[elements >= 0]) == [0, 1, 2, 3, 4]
    assert np.isnan(values[elements < 0]).all()


def test_elements_of_a_sample_are_those_that_were_taken():
    drawn = drawable(np.zeros(512 * 512), (1000, 1000), sampled=True)
    elements = np.frombuffer(lay_values(drawn), "<i4")[512 * 512 :]
    assert sorted(elements) == [i * 1_000_000 // (512 * 512) for i in range(512 * 512)]


@pytest.mark.parametrize("side", [128, 512])
def test_a_png_shows_the_values_in_the_published_colours(side):
    values = np.linspace(-1, 1, 256)
    pixels = np.asarray(Image.open(BytesIO(draw_png(drawable(values), side))))
    assert pixels.shape == (side, side, 3)
    shown = {tuple(c) for c in pixels.reshape(-1, 3).tolist()}
    assert shown <= {tuple(c) for c in COLOURS.tolist()}
    assert len(shown) > 20


def test_a_histogram_counts_every_finite_value():
    values = np.append(np.random.default_rng(1).standard_normal(1000), [np.nan, np.inf, 1e9, -1e9])
    found = count_values(drawable(values / 1e3))
    assert found.counts.sum() == 1002
    assert found.counts[0] == found.counts[-1] == 1
    assert draw_histogram(found).count("<rect") == 61
    assert count_values(drawable([0.0])).counts[30] == 1
    assert draw_histogram(count_values(drawable([np.nan])))


def test_the_legend_has_words():
    assert "alt=" in draw_legend()
    assert "+5 s" in draw_legend()


def test_what_cannot_be_drawn(house):
    with pytest.raises(UnknownModel):
        read_tensor(house / "store", "nobody", TENSOR)
    with pytest.raises(UsageError):
        read_tensor(house / "store", "base", "nothing")
