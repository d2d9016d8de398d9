"""Images with true and found objects: masks shade their pixels, boxes and names have their class' colour."""

import numpy as np
from PIL import Image

from pela_vl.report.detections import Drawn, class_colour, detection_sheet, draw_objects

CLASSES = ("disc", "box", "bar")


def test_a_mask_shades_its_pixels_alone_and_a_box_is_drawn():
    image = Image.new("RGB", (100, 80), (128, 128, 128))
    mask = np.zeros((80, 100), dtype=bool)
    mask[30:50, 40:60] = True
    drawn = np.asarray(draw_objects(image, [Drawn([10, 20, 60, 50], "box", mask)], CLASSES))
    assert (drawn[45, 50] != 128).any() and (drawn[75, 90] == 128).all() and (drawn[65, 30] == 128).all()
    assert tuple(drawn[69, 40]) == class_colour(1)  # the box's lower edge
    assert np.asarray(image).max() == 128  # the image itself is untouched
    assert len({class_colour(k) for k in range(80)}) > 60


def test_a_sheet_has_two_panels_an_image():
    image = Image.new("RGB", (60, 40), (200, 200, 200))
    rows = [
        (f"{k}.jpg", image, [Drawn([1, 1, 20, 20], "disc")], [Drawn([2, 2, 9, 9], "bar", None, 0.5)]) for k in range(3)
    ]
    sheet = detection_sheet(rows, CLASSES, 100)
    assert sheet.width >= 4 * 192 and sheet.height >= 2 * 192
    assert detection_sheet(rows[:1], CLASSES, 100).width < sheet.width
    assert detection_sheet([("x", image, [], [])], CLASSES).size[0] > 300
