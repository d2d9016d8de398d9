"""Images with true and found objects: masks shade their pixels, boxes and names have their class' colour."""

import numpy as np
import pytest
from PIL import Image

from pela_vl.report.detections import Drawn, class_colour, detection_sheet, draw_objects, enlarged

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


@pytest.mark.parametrize("number", range(3))
def test_a_name_is_readable_on_its_class_colour(number):
    image = Image.new("RGB", (600, 560), (90, 120, 90))
    for box in ([30, 60, 290, 280], [-4, -3, 290, 280], [560, 90, 50, 80]):
        drawn = np.asarray(draw_objects(image, [Drawn(box, CLASSES[number], None, 0.5)], CLASSES)).astype(int)
        letters = (drawn == 0).all(2) | (drawn == 255).all(2)
        assert letters.sum() > 20
        rows, columns = np.nonzero(letters)
        place = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].reshape(-1, 3)
        assert (place == class_colour(number)).all(1).mean() > 0.2  # the letters stand on the class' colour
        assert contrast(drawn[letters][0], class_colour(number)) >= 4.5


def contrast(first, second):
    """WCAG 2's, between two colours."""

    def luminance(colour):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_boxes_and_masks_of_an_enlarged_image_lie_on_their_objects():
    pixels = np.full((30, 40, 3), 200, np.uint8)
    mask = np.zeros((30, 40), bool)
    mask[10:20, 15:35] = True
    pixels[mask] = (0, 0, 90)
    image, (thing,) = enlarged(Image.fromarray(pixels), [Drawn([15, 10, 20, 10], "box", mask, 0.7)], 320)
    assert image.size == (320, 240) and thing.score == 0.7
    assert np.allclose(thing.box, [120, 80, 160, 80])
    dark = np.asarray(image)[:, :, 0] < 100
    assert (dark == thing.mask).mean() > 0.99
    rows, columns = np.nonzero(thing.mask)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (120, 80, 280, 160)
    large = Image.new("RGB", (400, 20))
    assert enlarged(large, [thing], 320) == (large, [thing])
