"""Labels in colours beside the truth."""

import numpy as np
import pytest
from PIL import Image

from pela_vl.report.segments import UNLABELLED, class_colours, draw_segmentation, paint, segmentation_sheet


def test_colours_differ_and_do_not_depend_on_the_count():
    colours = class_colours(150).astype(int)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(150, dtype=int)
    assert distance.min() > 8 and np.array_equal(colours[:18], class_colours(18))


def test_paint_mixes_the_classes_colours_into_the_image():
    image, labels = Image.new("RGB", (3, 2), (100, 100, 100)), np.array([[0, 1, 255], [1, 1, 0]])
    found = np.asarray(paint(image, labels, 2, strength=1.0))
    colours = class_colours(2)
    assert np.array_equal(found[0, 0], colours[0]) and np.array_equal(found[1, 1], colours[1])
    assert tuple(found[0, 2]) == UNLABELLED
    assert np.array_equal(np.asarray(paint(image, labels, 2, strength=0.0)), np.asarray(image))
    with pytest.raises(ValueError, match="do not fit"):
        paint(image, labels[:1], 2)


def test_a_sheet_has_three_panels_an_image_whatever_their_sizes(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (400, 300), (50, 50)]
    images = [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]
    truths = [rng.integers(0, 3, size).astype(np.uint8) for size in sizes]
    truths[1][:] = 255
    sheet = segmentation_sheet(images, truths, [t % 3 for t in truths], ["a", "b", "c"], ["wall", "floor", "x" * 60])
    assert sheet.width == 6 * 256 and sheet.height > 2 * 256
    draw_segmentation(tmp_path / "sheet.png", sheet)
    assert Image.open(tmp_path / "sheet.png").size == sheet.size
