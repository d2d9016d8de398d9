"""Detection sets: batches of unlike sizes, unreadable images, and tests that leave nothing out."""

import json

import numpy as np
import pytest
import torch
from coco_files import CLASSES, write_coco

from pela_vl.base.errors import UserError
from pela_vl.data.detection_transforms import DetectionTransform, FixedTransform
from pela_vl.data.sets.detection import DetectionEval, DetectionImages, collate_detection


def training(folder, **changes):
    found = DetectionImages([str(write_coco(folder, 8, 0))], str(folder / "images"), **changes)
    found.transform = DetectionTransform([64, 80], 200)
    return found


def test_a_batch_is_padded_and_its_objects_know_their_image(tmp_path):
    data = training(tmp_path, keep_empty=True)
    samples = [data[0, number] for number in (2, 3, 0)]
    batch = collate_detection(samples)
    assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0 and len(batch) == 3
    assert batch.owners.tolist() == [0, 0, 0, 2] and batch.masks.dtype == torch.bool
    for number, sample in enumerate(samples):
        height, width = batch.sizes[number].tolist()
        assert torch.equal(batch.images[number, :, :height, :width], sample.image)
        assert not batch.images[number, :, height:].any() and not batch.images[number, :, :, width:].any()
        own = batch.owners == number
        assert torch.equal(batch.boxes[own], sample.shown.boxes)
        assert torch.equal(batch.masks[own][:, :height, :width], sample.shown.masks.bool())
        assert not batch.masks[own][:, height:].any()


def test_images_without_annotations_are_left_out_unless_wanted(tmp_path):
    assert len(training(tmp_path)) == 6 and len(training(tmp_path, keep_empty=True)) == 8


def test_an_unreadable_image_is_replaced_with_its_objects(tmp_path):
    data = training(tmp_path)
    (tmp_path / "images/0_1.png").write_bytes(b"no image")
    found, other = data[0, 1], data[0, 2]
    assert found.index == 2 and found.bad and len(found.shown.labels) == len(other.shown.labels) == 3
    with pytest.raises(UserError, match="0_1.png"):
        test_set = DetectionEval(
            str(tmp_path / "instances.json"), str(tmp_path / "images"), CLASSES, FixedTransform(64, 96)
        )
        test_set[1]


def test_a_test_has_every_image_and_cocos_annotations_numbered_from_one(tmp_path):
    path = write_coco(tmp_path, 5, 0)
    test_set = DetectionEval(str(path), str(tmp_path / "images"), ("bar", "disc", "box"), FixedTransform(64, 200))
    assert len(test_set) == 5 and test_set.category == {0: 90, 1: 3, 2: 7}
    for index in range(5):
        height, width = test_set.size(index)
        assert test_set[index].shape[1] % 32 == 0 and min(height, width) == 64
    document = test_set.document()
    assert [entry["id"] for entry in document["annotations"]] == list(range(1, 9))
    with pytest.raises(UserError, match="category 'disc' is none of the 1"):
        DetectionEval(str(path), str(tmp_path / "images"), ("box",), FixedTransform(64, 200))
    (tmp_path / "images/0_4.png").unlink()
    with pytest.raises(UserError, match="0_4.png.*no such file"):
        DetectionEval(str(path), str(tmp_path / "images"), CLASSES, FixedTransform(64, 200))


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [1, 2], "counts": [2]},
        {"size": [64, 96], "counts": [100]},
        {"size": [64, 96], "counts": ""},
        {"size": [64, 96]},
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "none",
    ],
)
def test_a_mask_that_cannot_be_read_ends_a_test_before_its_pass(tmp_path, mask):
    path = write_coco(tmp_path, 5, 0)
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = mask
    path.write_text(json.dumps(content))
    given = (str(path), str(tmp_path / "images"), CLASSES, FixedTransform(64, 200))
    with pytest.raises(UserError, match=r"image 0 \(0_0.png\): an object has no mask that can be read"):
        DetectionEval(*given)
    boxes_alone = DetectionEval(*given, masks=False).document()
    assert not any("segmentation" in entry for entry in boxes_alone["annotations"])


def test_what_an_evaluation_writes_into_its_document_stays_there(tmp_path):
    test_set = DetectionEval(
        str(write_coco(tmp_path, 5, 0)), str(tmp_path / "images"), CLASSES, FixedTransform(64, 200)
    )
    first = test_set.document()
    first["annotations"][0]["ignore"] = 1
    assert "ignore" not in test_set.document()["annotations"][0] and test_set.masks


def test_files_with_other_categories_and_paths_that_leave_the_root_are_refused(tmp_path):
    first, second = write_coco(tmp_path / "a", 2, 0), write_coco(tmp_path / "b", 2, 1)
    second.write_text(second.read_text().replace('"disc"', '"ring"'))
    with pytest.raises(UserError, match="other categories than"):
        DetectionImages([str(first), str(second)], str(tmp_path))
    first.write_text(first.read_text().replace("0_0.png", "../../0_0.png"))
    with pytest.raises(UserError, match="not below the image root"):
        DetectionImages([str(first)], str(tmp_path / "a/images"))


def test_an_image_of_another_size_than_annotated_is_replaced(tmp_path):
    from PIL import Image

    data = training(tmp_path)
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(tmp_path / "images/0_0.png")
    assert data[0, 0].index == 1 and "annotated as" in data[0, 0].bad[0][1]
