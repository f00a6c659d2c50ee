from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hilm.errors import UsageError
from hilm.reel import heatmap
from hilm.reel.heatmap import FIGURES, SEQUENTIAL, draw_heatmap
from hilm.weights.statistics import LayerStatistics


def measure(tensors):
    statistics = LayerStatistics()
    for name, listed in tensors.items():
        values = np.asarray(listed, np.float32)
        statistics.update(name, values.shape, values.ravel())
    return statistics


def drawn(tensors, **options):
    return np.array(Image.open(BytesIO(draw_heatmap(measure(tensors), model="tiny", **options))))


def cell(picture, row, column):
    """Colour of a corner of a cell, where no figure is written."""
    top = heatmap.HEADER + heatmap.COLUMN_LABELS + row * heatmap.TALLEST
    left = heatmap.MARGIN + heatmap.ROW_LABELS + column * heatmap.WIDTH
    return tuple(picture[top + 1, left + 1].tolist())


def spread(std):
    return np.tile([-std, std], 8).reshape(4, 4)


def test_a_cell_has_the_colour_that_the_scale_gives_its_figure():
    picture = drawn(
        {
            "wte.weight": spread(2**-10),
            "h.0.attn.q_proj.weight": spread(2**-5),
            "h.1.attn.q_proj.weight": spread(1),
            "h.1.attn.k_proj.weight": spread(100),
        }
    )
    low, middle, high = (tuple(SEQUENTIAL[round(255 * part)].tolist()) for part in (0, 0.5, 1))
    assert cell(picture, 0, 0) == low  # the embedding, in the column of token tables
    assert cell(picture, 1, 1) == middle
    assert cell(picture, 2, 1) == high
    assert cell(picture, 2, 2) == high  # beyond the scale
    assert cell(picture, 1, 2) == heatmap.PAPER  # block 0 has no k


@pytest.mark.parametrize(
    ("figure", "values", "place"),
    [
        ("std", [-0.5, 0.5], 0.9),
        ("std", [0.5, 0.5], 0.0),
        ("max", [-8, 1], 0.75),
        ("zeros", [0, 1, 0, 0], 0.75),
        ("outliers", [0] * 9999 + [1.0], 0.5),
        ("mean", [1, 1], 1.0),
        ("mean", [-3, -3], -0.04),
        ("mean", [0, 0], 0.5),
    ],
)
def test_scales(figure, values, place):
    scale = FIGURES[figure]
    ((_, figures),) = measure({"w": values}).fold(lambda *_: 0).items()
    assert scale.place(scale.value(figures)) == pytest.approx(place, abs=0.04)
    index = round(255 * min(max(scale.place(scale.value(figures)), 0), 1))
    assert scale.colour(figures) == tuple(scale.colours[index].tolist())


def test_colours_brighten_evenly():
    linear = np.where(SEQUENTIAL <= 10, SEQUENTIAL / 3294.6, ((SEQUENTIAL / 255 + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    even = np.linspace(lightness[0], lightness[-1], 256)
    assert np.abs(lightness - even).max() < 2
    assert lightness[-1] - lightness[0] > 70


def test_rows_are_the_embedding_the_blocks_of_each_stack_and_the_rest():
    names = [
        "lm_head.weight",
        "model.decoder.layers.10.fc1.weight",
        "model.decoder.layers.2.fc1.weight",
        "model.encoder.layers.0.fc1.weight",
        "model.encoder.layers.0.mlp.experts.7.w1.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
    ]
    cells = measure({name: [1.0] for name in names}).fold(heatmap._row)
    rows = heatmap._order_rows(cells)
    assert [row.block for row in rows] == [None, 2, 10, 0, None, None]
    assert [row.stack for row in rows if row.block is None] == ["embedding", "other", "output"]
    assert heatmap._name_stacks(list(dict.fromkeys(row.stack for row in rows[1:4]))) == {
        "model.decoder.layers": "decoder",
        "model.encoder.layers": "encoder",
    }
    assert heatmap._name_stacks(["h"]) == {"h": "block"}
    assert heatmap._name_stacks(["layer1", "x.layer2"]) == {"layer1": "layer1", "x.layer2": "x.layer2"}


def test_many_blocks_still_make_a_picture_one_can_open():
    tensors = {f"layers.{n}.mlp.up_proj.weight": [1.0, 2.0] for n in range(400)}
    height, width, _ = drawn(tensors).shape
    assert height < 2600
    assert width <= heatmap.NARROWEST
    with pytest.raises(UsageError, match="2,400 blocks"):
        drawn({f"layers.{n}.mlp.up_proj.weight": [1.0] for n in range(2400)})


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(UsageError, match="no figure 'median'"):
        drawn({"w": [1.0]}, figure="median")
    with pytest.raises(UsageError, match="no finite weights"):
        drawn({"w": [np.nan]})
