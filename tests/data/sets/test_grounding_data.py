"""Boxes and images in one frame: the stored pixels, whatever the EXIF orientation says."""

import json
import shutil

import numpy as np
import pytest
import torch
from grounding_data import build, load
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import ImageError
from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.sets.grounding import GroundingEval
from pela_vl.data.sizes import check_box
from pela_vl.data.transforms import eval_transform


@pytest.fixture(scope="module")
def turned(scenes, tmp_path_factory):
    """The scenes with the very same pixels, stored as PNG under their names, each with EXIF orientation 6."""
    root = tmp_path_factory.mktemp("turned")
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (scenes / "images").rglob("*.jpg"):
        target = root / path.relative_to(scenes)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            wide = image.convert("RGB").crop((0, 0, image.width, image.height - 8))
            wide.save(target, format="PNG", exif=exif)
    return root


@pytest.fixture(scope="module")
def lists(scenes, tmp_path_factory):
    return build(scenes, tmp_path_factory.mktemp("lists"))


def edited(lists, folder, edit):
    """A copy of the lists with an edited boxes file."""
    shutil.copytree(lists, folder)
    boxes = json.loads((folder / "refs_boxes.json").read_text())
    edit(boxes)
    (folder / "refs_boxes.json").write_text(json.dumps(boxes))
    return folder


def test_evaluation_and_training_see_the_stored_pixels(turned, lists, tmp_path):
    def flat(boxes):
        for image in boxes["images"].values():
            image["height"] -= 8
            image["boxes"] = [[x, 0, w, 1] for x, _, w, _ in image["boxes"]]
        for ref in boxes["refs"].values():
            ref["box"] = [0, 0, 4, 4]

    data = load(turned, edited(lists, tmp_path / "lists", flat))
    seen = list(range(len(data)))
    train = CaptionPairs([lists / "refs_train.json"], turned, eval_transform(32), field="text", stored_pixels=True)
    images = [(data.images[i].path, data[i]) for i in seen] + [(train.images[0], train[(0, 0)].image)]
    for path, image in images:
        with Image.open(turned / path) as stored:
            assert torch.equal(image, eval_transform(32)(stored.convert("RGB"))[0])
            assert stored.width > stored.height
    upright = CaptionPairs([lists / "refs_train.json"], turned, eval_transform(32), field="text")
    assert not torch.equal(upright[(0, 0)].image, train[(0, 0)].image)


def test_a_picture_of_another_size_than_annotated_is_named(turned, lists, scenes, tmp_path):
    data = load(turned, lists)
    with pytest.raises(ImageError, match=r"\.jpg: \d+ x \d+ pixels, but annotated as \d+ x \d+; use the files"):
        data[0]
    shutil.copytree(scenes / "images", tmp_path / "images")
    first = data.images[0].path
    pixels = np.zeros((16, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / first)

    def swap(boxes):
        for image in boxes["images"].values():
            image["width"], image["height"] = 16, 40
            image["boxes"] = []
        for ref in boxes["refs"].values():
            ref["box"] = [0, 0, 4, 4]

    with pytest.raises(ImageError, match="40 x 16 pixels, but annotated as 16 x 40 .*EXIF orientation"):
        load(tmp_path, edited(lists, tmp_path / "lists", swap))[0]


@pytest.mark.parametrize("kind", ["true", "candidate"])
def test_a_box_outside_its_picture_is_named(scenes, lists, tmp_path, kind):
    def move(boxes):
        box = [20.0, 2.0, 5000.0, 4.0]
        if kind == "true":
            next(iter(boxes["refs"].values()))["box"] = box
        else:
            next(iter(boxes["images"].values()))["boxes"].append(box)

    with pytest.raises(UserError, match=r"refs_boxes.json: ref \d+.*box \[20.0, 2.0, 5000.0, 4.0\].* lies outside"):
        GroundingEval(
            [lists / "refs_val.json", lists / "refs_test.json"],
            edited(lists, tmp_path / "lists", move) / "refs_boxes.json",
            scenes,
            eval_transform(32),
        )


def test_a_box_may_stick_out_by_a_rounding():
    for box in ([0, 0, 10, 8], [-0.5, -1, 3, 3], [7, 5, 3.9, 4]):
        check_box(box, 10, 8, "here")
    for box in ([-2, 0, 3, 3], [0, -1.1, 3, 3], [8, 0, 3.1, 1], [0, 6, 1, 3.1]):
        with pytest.raises(UserError, match="here: box"):
            check_box(box, 10, 8, "here")
