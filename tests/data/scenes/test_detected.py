"""Scenes in COCO's layout: masks are what is seen, boxes are the masks', and an interrupted run goes on."""

import json
from dataclasses import replace

import numpy as np

from pela_vl.data.scenes import detected
from pela_vl.data.scenes.chunks import SetRequest, build_set
from pela_vl.data.scenes.detected import DETECTED, build_detected
from pela_vl.data.scenes.labels import visible_masks
from pela_vl.data.scenes.scene import SHAPES, sample_scene
from pela_vl.data.sets.coco_file import objects_of, read_coco


def test_masks_and_boxes_are_those_of_the_scene(tmp_path):
    assert build_detected(SetRequest(5, 3, seed=4, image_size=96), tmp_path, report=False)
    for split, count in (("train", 5), ("val", 3)):
        file = read_coco(tmp_path / f"{split}.json")
        assert file.names == SHAPES and len(file.images) == count and file.has_masks
        for index, image in enumerate(file.images):
            scene = sample_scene(4, split, index)
            masks = visible_masks(scene, 96)
            seen = [k for k, mask in enumerate(masks) if mask.sum() >= detected.LEAST_PIXELS]
            found = objects_of(image, {number: number - 1 for number in file.categories}, True)
            assert [SHAPES[label] for label in found.labels] == [scene.things[k].shape for k in seen]
            assert np.array_equal(found.masks.astype(bool), masks[seen])
            for mask, (x0, y0, x1, y1) in zip(masks[seen], found.boxes.astype(int), strict=True):
                inside = mask[y0:y1, x0:x1]
                assert inside.sum() == mask.sum() and inside.any(0).all() and inside.any(1)[[0, -1]].all()
            assert (tmp_path / "images" / image.file_name).stat().st_size > 500


def test_annotations_are_numbered_through(tmp_path):
    build_set(replace(DETECTED, chunk=2), SetRequest(5, 2, image_size=64), tmp_path, 1, report=False)
    ids = [entry["id"] for entry in json.loads((tmp_path / "train.json").read_text())["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
