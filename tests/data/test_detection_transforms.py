"""Training images of a detector: boxes and masks go where their pixels go."""

import numpy as np
import pytest
import torch

from pela_vl.data.detection_transforms import (
    CROP_RANGE,
    DetectionTransform,
    FixedTransform,
    Shown,
    crop,
    flip,
    padded,
    resize,
    scaled_size,
)


def shown(height=60, width=90):
    """Three rectangles whose pixels are as bright as their class says."""
    pixels, masks = torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(3, height, width, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 8.0, 30.0, 40.0], [50.0, 20.0, 88.0, 58.0], [2.0, 44.0, 20.0, 60.0]])
    for number, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
        masks[number, y0:y1, x0:x1] = 1
        pixels[:, y0:y1, x0:x1] = 80 * (number + 1)
    return Shown(pixels, boxes, torch.tensor([0, 1, 2]), masks)


def extents(mask):
    """Box of a mask."""
    rows, columns = torch.where(mask.any(1))[0], torch.where(mask.any(0))[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def check(found, slack=1.5):
    """Every mask fills its box, and the image is as bright there as its class is."""
    for box, label, mask in zip(found.boxes, found.labels, found.masks, strict=True):
        if (box[2:] - box[:2]).min() < 5:
            continue  # what a crop leaves of an object may be less than a pixel of its mask
        assert [float(value) for value in extents(mask)] == pytest.approx(box.tolist(), abs=slack)
        inner = found.pixels[0][mask.bool()].float().median()
        assert abs(inner - 80 * (int(label) + 1)) <= 1


@pytest.mark.parametrize("size", [(60, 90), (120, 180), (30, 45), (37, 201)])
def test_resized_flipped_and_cropped_objects_stay_on_their_pixels(size):
    check(resize(shown(), size))
    check(flip(resize(shown(), size)))
    check(resize(flip(shown()), size))
    again = flip(flip(shown()))
    assert torch.equal(again.boxes, shown().boxes) and torch.equal(again.pixels, shown().pixels)
    found = crop(shown(), 5, 40, (50, 50))
    assert found.labels.tolist() == [1] and found.boxes.tolist() == [[10.0, 15.0, 48.0, 50.0]]
    check(found)
    assert crop(shown(), 0, 30, (8, 8)).boxes.shape == (0, 4)


def test_pixels_are_resized_as_opencv_does():
    """Bilinear between the four nearest, without averaging where it shrinks."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 9, 7), dtype=np.uint8))
    found = resize(Shown(image, torch.zeros(0, 4), torch.zeros(0), None), (4, 13)).pixels
    for row in range(4):
        for column in range(13):
            y, x = (row + 0.5) * 9 / 4 - 0.5, (column + 0.5) * 7 / 13 - 0.5
            y, x = min(max(y, 0), 8), min(max(x, 0), 6)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 8), min(left + 1, 6)
            part = image[:, [top, top, bottom, bottom], [left, right, left, right]].double()
            weights = torch.tensor([(1 - y + top) * (1 - x + left), (1 - y + top) * (x - left),
                                    (y - top) * (1 - x + left), (y - top) * (x - left)]).double()  # fmt: skip
            assert (found[:, row, column].double() - (part * weights).sum(1)).abs().max() <= 0.5001


def test_a_side_is_scaled_as_far_as_both_limits_allow():
    assert scaled_size((480, 640), 800, 1333) == (800, 1067)
    assert scaled_size((640, 480), 800, 1333) == (1067, 800)
    assert scaled_size((300, 1000), 800, 1333) == (400, 1333)
    assert (padded(800), padded(1067), padded(1)) == (800, 1088, 32)
    fixed = FixedTransform(800, 1333)
    assert fixed.size(427, 640) == (800, 1199)


@pytest.mark.parametrize("longer", [False, True])
def test_the_training_transform_draws_from_its_generator_alone(longer):
    transform = DetectionTransform([48, 64, 80], 1333, 0.5, longer)
    seen = set()
    for seed in range(16):
        (image, found), (again, same) = (transform(shown(), np.random.default_rng(seed)) for _ in range(2))
        assert torch.equal(image, again) and torch.equal(found.boxes, same.boxes)
        assert image.shape[1:] == found.masks.shape[1:] == found.pixels.shape[1:]
        assert min(found.size) in (48, 64, 80)
        check(found, slack=14 if longer else 2)  # a cropped image was resized from 500 pixels
        seen.add((min(found.size), bool(len(found.labels) < 3), found.boxes[:, 0].tolist() != []))
    assert {size for size, _, _ in seen} == {48, 64, 80}
    assert any(cut for _, cut, _ in seen) == longer
    low, high = CROP_RANGE
    assert (low, high) == (384, 600)


def test_normalised_as_imagenet_is():
    image, _ = DetectionTransform([60], 1333, 0.0)(shown(), np.random.default_rng(0))
    expected = (240 / 255 - 0.485) / 0.229
    assert float(image[0, 50, 10]) == pytest.approx(expected, abs=1e-5)
