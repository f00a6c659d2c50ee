from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from hilm.reel.rate_plot import BOTTOM, LEFT, OTHER, OWN, RIGHT, TOP, Point, draw_rates

POINTS = [Point(2, 0.1, "two", True), Point(4.5, 0.005, "q4_k", False), Point(2.2, 0.08, "", True)]


def pixels(points):
    return np.asarray(Image.open(BytesIO(draw_rates(points, title="a model"))))


def place(bits, power):
    """Of the axes that POINTS get: 0 to 5 bits, 1 to 1e-3."""
    return round(TOP + (BOTTOM - TOP) * -power / 3), round(LEFT + (RIGHT - LEFT) * bits / 5)


def test_points_lie_where_they_belong():
    image = pixels(POINTS)
    assert tuple(image[place(2, -1)]) == OWN
    assert tuple(image[place(4.5, np.log10(0.005))]) == OTHER


def test_the_bound_is_a_straight_dark_line_of_a_quarter_a_bit():
    image = pixels(POINTS)
    for bits in (1, 3, 4):
        row, column = place(bits, -bits * np.log10(4))
        assert image[row - 1 : row + 2, column].min() < 80
        assert image[row - 1 : row + 2, column + 10].min() > 200


def test_any_number_of_any_points_is_drawn():
    assert pixels([Point(7.9, 3e-5, "x" * 200, True)]).shape == pixels(POINTS).shape
    assert pixels([Point(0.2, 0.9, "bad", False), Point(8.5, 3e-5, "\x1b\N{SNOWMAN}", True)]).any()
