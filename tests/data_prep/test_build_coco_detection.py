"""data_prep/build_coco_detection.py: COCO's files as downloaded, counts that are checked, and photographs with boxes."""

import json
from pathlib import Path

import pytest
from coco_files import unpacked, write_coco
from scripts import run_script
from tiny_runs import ROOT

from pela_vl.base.errors import UserError
from pela_vl.data.public import coco_detection
from pela_vl.data.sets.coco_file import read_coco
from pela_vl.data.sets.detection import DetectionImages

PHOTOGRAPHS = ROOT.parent / "shared/data/coco_ccby_small"


def build(*arguments):
    return run_script(ROOT / "data_prep" / "build_coco_detection.py", *arguments)


@pytest.fixture
def raw(tmp_path):
    """COCO's layout with 6 and 3 images; one crowd, one box outside its image, one without area."""
    import numpy as np

    (tmp_path / "annotations").mkdir()
    for seed, (folder, count) in enumerate((("train2017", 6), ("val2017", 3))):
        path = write_coco(tmp_path / folder, count, seed)
        (tmp_path / folder / "images").rename(tmp_path / f"moved_{folder}")
        document = json.loads(path.read_text())
        if not seed:
            first = document["images"][0]
            base = {"image_id": first["id"], "category_id": 7, "iscrowd": 0, "area": 9}
            whole = unpacked(np.ones((first["height"], first["width"]), dtype=bool))
            document["annotations"] += [
                {**base, "id": 90, "bbox": [0, 0, 40, 40], "iscrowd": 1, "segmentation": whole},
                {**base, "id": 91, "bbox": [500, 0, 4, 4], "segmentation": [[500, 0, 504, 0, 504, 4]]},
                {**base, "id": 92, "bbox": [5, 5, 0, 0], "segmentation": [[5, 5, 5, 5, 5, 5]]},
            ]
        (tmp_path / f"annotations/instances_{folder}.json").write_text(json.dumps(document))
        path.unlink()
        (tmp_path / folder).rmdir()
        (tmp_path / f"moved_{folder}").rename(tmp_path / folder)
    return tmp_path


def test_another_count_than_cocos_is_refused_unless_wanted(raw):
    arguments = ("--images", raw, "--annotations", raw / "annotations", "--output", raw / "out")
    done = build(*arguments)
    assert done.returncode != 0 and "train: 6 images of 3 categories; COCO 2017 has 118,287 of 80" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (raw / "out/train.json").exists() and build(*arguments, "--partial").returncode == 0


def test_the_whole_is_laid_out_counted_and_read(raw):
    arguments = ("--images", raw, "--annotations", raw / "annotations", "--output", raw / "out", "--partial")
    done = build(*arguments)
    assert done.returncode == 0, done.stderr
    assert "6 images (1 empty)" in done.stdout and "1 crowds, 2 left out" in done.stdout
    data = DetectionImages([str(raw / "out/train.json")], str(raw / "out/images"))
    assert len(data) == 5 and data.images[0].file_name.startswith("train2017/") and data.read(data.images[0]).size
    assert len(read_coco(raw / "out/val.json").images) == 3
    again = build(*arguments)
    assert again.returncode == 0 and "was complete already" in again.stdout
    assert [line for line in again.stdout.splitlines()[1:]] == done.stdout.splitlines()
    (raw / "val2017/1_2.png").unlink()
    with pytest.raises(UserError, match="1 of 3 images are not there, such as val2017/1_2.png"):
        coco_detection.gather(raw, raw / "annotations", raw / "other", True)


def test_the_published_counts():
    assert coco_detection.IMAGES == {"train": 118_287, "val": 5_000} and coco_detection.CATEGORIES == 80
    whole = coco_detection.Counted(5_000, 0, 80, 1, 0, 0)
    coco_detection.check_counts({"val": whole}, False)
    with pytest.raises(UserError, match="train: 5,000 images"):
        coco_detection.check_counts({"train": whole}, False)


def test_photographs_with_boxes_make_both_files(tmp_path):
    assert PHOTOGRAPHS.is_dir(), f"{PHOTOGRAPHS}: the photographs lie beside the checkout"
    counts = coco_detection.from_photographs(PHOTOGRAPHS, tmp_path, 16)
    assert (counts["train"]["images"], counts["val"]["images"]) == (53, 16)
    assert (
        counts["train"]["objects"] + counts["val"]["objects"] == 458
        and counts["train"]["empty"] + counts["val"]["empty"] == 17
    )
    data = DetectionImages([str(tmp_path / "train.json")], str(tmp_path / "images"), masks=False)
    assert len(data.classes) == 58 and Path(data.read.reader.root).name == "images"
    with pytest.raises(UserError, match="--test 69"):
        coco_detection.from_photographs(PHOTOGRAPHS, tmp_path, 69)
