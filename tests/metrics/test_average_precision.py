"""COCO's AP on cases that are small enough to work out by hand."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pela_vl.metrics.average_precision import NAMES, average_precision

IMAGES = [{"id": 10, "width": 100, "height": 100}, {"id": 11, "width": 100, "height": 100}]
CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "box"}]


def packed(x, y, w, h):
    mask = np.zeros((100, 100), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    found = coco_mask.encode(mask)
    return {"size": found["size"], "counts": found["counts"].decode()}


def true(number, image, category, box, **more):
    area = box[2] * box[3]
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
    return entry | {"segmentation": packed(*box)} | more


def found(image, category, box, score, mask=None):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "score": score,
        "segmentation": packed(*mask or box),
    }


def document(*annotations):
    return {"images": IMAGES, "annotations": list(annotations), "categories": CATEGORIES}


BOX = [10, 10, 40, 50]


def test_all_found_is_a_hundred_and_a_higher_false_one_halves_the_precision():
    truth = document(true(1, 10, 3, BOX), true(2, 11, 7, BOX))
    right = [found(10, 3, BOX, 0.9), found(11, 7, BOX, 0.8)]
    for kind in ("bbox", "segm"):
        numbers, classes = average_precision(truth, right, kind)
        assert numbers["ap"] == pytest.approx(100) and classes == pytest.approx({"disc": 100, "box": 100})
        wrong = [*right, found(10, 7, [60, 60, 30, 30], 0.95)]
        numbers, classes = average_precision(truth, wrong, kind)
        assert classes == pytest.approx({"disc": 100, "box": 50}) and numbers["ap"] == pytest.approx(75)
        assert numbers["ar"] == pytest.approx(100)


def test_ap_averages_the_thresholds_that_the_overlap_reaches():
    truth = document(true(1, 10, 3, BOX))
    near = [10, 10, 40, 36]  # IoU 0.72: thresholds 0.50 to 0.70
    numbers, _ = average_precision(truth, [found(10, 3, near, 0.9)], "bbox")
    assert numbers["ap"] == pytest.approx(50) and numbers["ap50"] == pytest.approx(100) and numbers["ap75"] == 0
    numbers, _ = average_precision(truth, [found(10, 3, BOX, 0.9, near)], "segm")  # the mask decides, not the box
    assert numbers["ap"] == pytest.approx(50)


def test_a_crowd_is_neither_missed_nor_does_what_lies_in_it_count_as_false():
    crowd = true(2, 10, 3, [50, 0, 50, 100], iscrowd=1)
    truth = document(true(1, 10, 3, BOX), crowd)
    inside = [found(10, 3, [60, 10 * k, 20, 8], 0.99) for k in range(5)]
    for kind in ("bbox", "segm"):
        numbers, _ = average_precision(truth, [found(10, 3, BOX, 0.5), *inside], kind)
        assert numbers["ap"] == pytest.approx(100)
    numbers, _ = average_precision(document(true(1, 10, 3, BOX)), [found(10, 3, BOX, 0.5), *inside], "bbox")
    assert numbers["ap"] < 20


def test_boxes_of_no_area_and_outside_the_image_are_measured():
    truth = document(true(1, 10, 3, BOX), true(2, 10, 3, [5, 5, 0, 9], area=0))
    odd = [
        found(10, 3, BOX, 0.9),
        found(10, 3, [200, 200, 0, 0], 0.8, [0, 0, 0, 0]),
        found(10, 3, [-9, -9, 5, 5], 0.7, [0, 0, 1, 1]),
    ]
    for kind in ("bbox", "segm"):
        numbers, _ = average_precision(truth, odd, kind)
        assert 40 < numbers["ap"] < 60  # one of two objects, found first


def test_sizes_go_by_the_masks_area_for_masks_and_nothing_true_is_no_number():
    truth = document(true(1, 10, 3, [0, 0, 20, 20]), true(2, 11, 3, [0, 0, 98, 98]))
    numbers, _ = average_precision(truth, [found(10, 3, [0, 0, 20, 20], 0.9)], "segm")
    assert numbers["ap_small"] == pytest.approx(100) and numbers["ap_large"] == 0 and "ap_medium" not in numbers
    assert set(numbers) <= set(NAMES)
    assert average_precision(document(), [found(10, 3, BOX, 0.9)], "bbox") == ({}, {})
    numbers, classes = average_precision(truth, [], "segm")
    assert numbers["ap"] == 0 and classes == {"disc": 0}
    given = [found(10, 3, BOX, 0.9)]
    average_precision(truth, given, "bbox")
    assert set(given[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}  # untouched
