"""Which classes are recognised worst, and the drawing of them."""

import numpy as np
from PIL import Image

from pela_vl.report.classes import draw_worst_classes, worst_classes

MATRIX = np.array([[8, 1, 1, 0], [0, 2, 2, 0], [3, 0, 1, 0], [0, 0, 0, 0]])  # 80 %, 50 %, 25 %, no image


def test_the_worst_come_first_and_a_class_without_images_is_left_out():
    assert worst_classes(MATRIX, 20) == [2, 1, 0] and worst_classes(MATRIX, 1) == [2]


def test_the_bars_are_as_long_as_the_shares(tmp_path):
    draw_worst_classes(MATRIX, [*"abcd"], "title", tmp_path / "classes.png")
    pixels = np.asarray(Image.open(tmp_path / "classes.png").convert("RGB")).astype(int)
    blue = (np.abs(pixels - (31, 95, 170)).sum(2) < 10).sum(1)
    lengths = [blue[y] for y in range(85, 85 + 3 * 26, 26)]
    assert np.allclose(lengths, [80, 160, 256], atol=2)
