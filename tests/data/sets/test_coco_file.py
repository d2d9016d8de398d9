"""COCO's files: what is learned of them, masks by COCO's rules, and faults that are named."""

import json

import numpy as np
import pytest
from coco_files import CATEGORIES, CLASSES, packed, polygon, unpacked, write_coco
from pycocotools.coco import COCO

from pela_vl.base.errors import UserError
from pela_vl.data.sets.coco_file import CocoImage, objects_of, rasterise, read_coco

BOX = {"image_id": 1000, "category_id": 7, "bbox": [0, 0, 1, 1]}


def image(*annotations, width=40, height=30):
    base = {"category_id": 7, "segmentation": [polygon(7, 2, 3, 10, 8)]}
    return CocoImage(5, "x.png", width, height, tuple({**base, **entry} for entry in annotations))


def test_images_and_categories_are_read_in_the_order_of_file_and_ids(tmp_path):
    file = read_coco(write_coco(tmp_path, 8, 3))
    assert file.names == CLASSES and list(file.categories) == sorted(CATEGORIES)
    assert [entry.number for entry in file.images] == [3000 + k for k in range(8)]
    assert [len(entry.annotations) for entry in file.images] == [1, 2, 3, 0, 2, 3, 1, 0] and file.has_masks


def test_masks_are_cocos(tmp_path):
    path = write_coco(tmp_path, 6, 1)
    truth, file = COCO(str(path)), read_coco(path)
    for entry in file.images:
        own = objects_of(entry, {number: k for k, number in enumerate(sorted(CATEGORIES))}, True)
        theirs = [truth.annToMask(a) for a in truth.loadAnns(truth.getAnnIds(imgIds=[entry.number]))]
        assert np.array_equal(own.masks, np.array(theirs, dtype=np.uint8).reshape(own.masks.shape))
    mask = np.zeros((30, 40), dtype=bool)
    mask[4:9, 30:38] = mask[20:, :3] = True
    for form in (packed(mask), unpacked(mask)):
        assert np.array_equal(rasterise(form, image()), mask)
    two = [polygon(7, 0, 0, 5, 5), polygon(7, 20, 10, 6, 6), [1.0, 2.0, 3.0, 4.0]]
    assert rasterise(two, image()).sum() == 25 + 36  # a line has no area
    assert rasterise([[1.0, 2.0, 3.0, 4.0]], image()).sum() == 0


def test_crowds_boxes_outside_and_boxes_without_area_are_not_learned():
    shown = image(
        {"bbox": [2, 3, 10, 8], "area": 80},
        {"bbox": [30, 20, 50, 50]},  # cut to the image
        {"bbox": [2, 3, 10, 8], "iscrowd": 1, "segmentation": unpacked(np.ones((30, 40), dtype=bool))},
        {"bbox": [50, 3, 10, 8]},
        {"bbox": [-20, 3, 10, 8]},
        {"bbox": [5, 5, 0, 9]},
        {"bbox": [5, 5, 9, 0.5]},
        {"bbox": [5, 5, 9, 9], "area": 0},
        {"bbox": [5, 5, 9, 9], "ignore": 1},
        {"bbox": [-4, -6, 20.5, 10]},
    )
    found = objects_of(shown, {7: 2}, True)
    assert found.boxes.tolist() == [[2, 3, 12, 11], [30, 20, 40, 30], [0, 0, 16.5, 4]]
    assert found.labels.tolist() == [2, 2, 2] and found.masks.shape == (3, 30, 40)
    none = objects_of(image(), {7: 2}, True)
    assert none.boxes.shape == (0, 4) and none.masks.shape == (0, 30, 40) and none.labels.dtype == np.int64
    assert objects_of(shown, {7: 0}, False).masks is None


@pytest.mark.parametrize(
    ("segmentation", "what"),
    [
        (None, "mask"),
        ([], "no polygon"),
        ({"size": [9, 9], "counts": [81]}, "of the image's size"),
        ("x", "mask"),
        (
            {"size": [30, 40], "counts": [1199]},
            "of 1199 pixels, the image has 1200",
        ),  # else the rest is what memory held
        ({"size": [30, 40], "counts": [0, 1201]}, "of 1201 pixels"),
        ({"size": [30, 40], "counts": [1300, -100]}, "run lengths"),
        ({"size": [30, 40], "counts": ""}, "end before the image does"),
        ({"size": [30, 40]}, "counts"),
        ([0.0, 0.0, 5.0, 5.0, 0.0, 5.0], "mask"),
    ],
)
def test_a_mask_that_cannot_be_read_is_named(segmentation, what):
    with pytest.raises(UserError, match="image 5 .x.png.") as caught:
        objects_of(image({"bbox": [2, 3, 10, 8], "segmentation": segmentation}), {7: 0}, True)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "no list 'images'"),
        ({"images": []}, "annotations.0.*image_id|names no image"),
        (
            {"images": [{"id": 1, "width": 0, "height": 4, "file_name": "a"}], "annotations": []},
            "images.0.*whole numbers",
        ),
        ({"images": [{"id": 1, "width": 4, "height": 4}], "annotations": []}, "images.0.*file_name"),
        ({"images": [{"id": 1, "width": 4, "height": 4, "file_name": "a"}] * 2, "annotations": []}, "images.1.*twice"),
        ({"categories": []}, "names no category"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]}, "categories.1."),
        ({"annotations": [{"image_id": 99}]}, "annotations.0.*image_id"),
        ({"annotations": [{"image_id": 1000, "category_id": 1}]}, "category_id 1"),
        ({"annotations": [{"image_id": 1000, "category_id": 7, "bbox": [0, 0, 1]}]}, "bbox wants four numbers"),
        ({"annotations": [{"image_id": 1000, "category_id": 7, "bbox": [0, 0, 1, None]}]}, "bbox wants four numbers"),
        ({"annotations": [{"image_id": [1000]}]}, "annotations.0.*image_id"),
        ({"annotations": [{"image_id": 1000, "category_id": [7]}]}, "category_id .7. is that of no category"),
        ({"annotations": [BOX | {"area": None}]}, "annotations.0.: area wants a number, got None"),
        ({"annotations": [BOX | {"area": "9"}]}, "area wants a number, got '9'"),
        ({"annotations": [BOX | {"iscrowd": None}]}, "iscrowd wants 0 or 1, got None"),
        ({"annotations": [BOX, BOX | {"ignore": 2}]}, "annotations.1.: ignore wants 0 or 1, got 2"),
    ],
)
def test_faults_are_named(tmp_path, change, message):
    path = write_coco(tmp_path, 2, 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        read_coco(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(UserError, match="malformed JSON"):
        read_coco(path)
    with pytest.raises(UserError, match="no such file"):
        read_coco(tmp_path / "absent.json")
