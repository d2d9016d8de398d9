"""Photographs with boxes: both files to the last field, from a folder of five."""

import json

import pytest
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.public.coco_detection import Counted, check_counts, from_photographs, show

OBJECTS = [
    [{"category": "dog", "bbox": [1, 2, 10, 20]}, {"category": "cat", "bbox": [0, 0, 5, 4]}],
    [],
    [{"category": "dog", "bbox": [3, 3, 6, 6]}],
    [{"category": "ant", "bbox": [3, 3, 0.5, 6]}],
    [{"category": "cat", "bbox": [2, 1, 8, 9]}],
]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    entries = []
    for number, objects in enumerate(OBJECTS):
        Image.new("RGB", (40, 30)).save(folder / f"{number}.png")
        entry = {"image": f"{number}.png", "image_id": 70 + number, "width": 40, "height": 30}
        entries.append(entry | ({"objects": objects} if objects else {}))
    (folder / "annotations.json").write_text(json.dumps(entries))
    return folder


def test_both_files_to_the_last_field(source, tmp_path):
    counts = from_photographs(source, tmp_path / "out", 2)
    train, val = (json.loads((tmp_path / "out" / f"{split}.json").read_text()) for split in ("train", "val"))
    assert train["categories"] == val["categories"] == [
        {"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}
    ]  # fmt: skip
    assert val["images"] == [
        {"id": number, "file_name": f"{number - 70}.png", "width": 40, "height": 30} for number in (70, 72)
    ]
    assert [image["id"] for image in train["images"]] == [71, 73, 74]
    assert val["annotations"] == [
        {"id": 1, "image_id": 70, "iscrowd": 0, "area": 200, "category_id": 3, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 70, "iscrowd": 0, "area": 20, "category_id": 2, "bbox": [0, 0, 5, 4]},
        {"id": 3, "image_id": 72, "iscrowd": 0, "area": 36, "category_id": 3, "bbox": [3, 3, 6, 6]},
    ]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in train["annotations"]] == [(1, 73, 1), (2, 74, 2)]
    assert counts == {
        "train": {"images": 3, "empty": 1, "categories": 3, "objects": 1, "crowds": 0, "left_out": 1},
        "val": {"images": 2, "empty": 0, "categories": 3, "objects": 3, "crowds": 0, "left_out": 0},
    }
    assert (tmp_path / "out" / "images").resolve() == source
    from_photographs(source, tmp_path / "out", 1)  # once more over the same folder
    assert len(json.loads((tmp_path / "out" / "val.json").read_text())["images"]) == 1
    assert show(counts["train"]) == (
        "       3 images (1 empty)         1 objects of 3 categories, 0 crowds, 1 left out"
    )


def test_what_is_not_there_and_too_few(source, tmp_path):
    for held_out in (0, 5):
        with pytest.raises(UserError, match=f"^--test {held_out}: want from 1 to 4 of the 5 images$"):
            from_photographs(source, tmp_path / "out", held_out)
    from_photographs(source, tmp_path / "out", 4)
    (source / "3.png").unlink()
    with pytest.raises(UserError, match=r"field 'image': .*3\.png: no such file$"):
        from_photographs(source, tmp_path / "out", 2)


@pytest.mark.parametrize(
    "objects", [None, "cat", [{"bbox": [0, 0, 1, 1]}], [{"category": "cat", "bbox": [0, 0, 1]}], ["cat"]]
)
def test_objects_that_are_none_are_named(source, tmp_path, objects):
    content = json.loads((source / "annotations.json").read_text())
    content[1]["objects"] = objects
    (source / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotations.json.*object"):
        from_photographs(source, tmp_path / "out", 2)


def test_counts_of_cocos_own():
    whole = {"train": Counted(118287, 0, 80, 1, 0, 0), "val": Counted(5000, 0, 80, 1, 0, 0)}
    check_counts(whole, False)
    for split, images, categories in (("train", 118286, 80), ("val", 5000, 79)):
        other = {split: Counted(images, 0, categories, 1, 0, 0)}
        check_counts(other, True)
        with pytest.raises(UserError, match=f"^{split}: {images:,} images of {categories} categories; COCO 2017 has"):
            check_counts(other, False)
