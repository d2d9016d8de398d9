"""Sets of images for vision tasks: the same bytes however the work was cut, interrupted or shared out."""

import json
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image
from scripts import run_script
from tiny_runs import ROOT

from pela_vl.base.errors import UserError
from pela_vl.data.scenes.chunks import SetRequest, build_set
from pela_vl.data.scenes.detected import DETECTED
from pela_vl.data.scenes.objects import OBJECTS, ObjectRequest
from pela_vl.data.scenes.segmented import SEGMENTED, SegmentedRequest

KINDS = {
    "objects": (OBJECTS, ObjectRequest(7, 3, seed=2, image_size=32)),
    "detected": (DETECTED, SetRequest(7, 3, 2, seed=2, image_size=64)),
    "segmented": (SEGMENTED, SegmentedRequest(7, 3, 2, seed=2, image_size=64)),
}


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_an_interrupted_run_goes_on_to_the_same_bytes(kind, tmp_path):
    kind, request = kind
    assert build_set(kind, request, tmp_path / "whole", 1, report=False)
    made = []

    def dying(*arguments):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(arguments[2])
        return kind.make(*arguments)

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        build_set(replace(kind, chunk=2, make=dying), request, cut, 1, report=False)

    def rest(*arguments):
        assert arguments[2] not in made  # what is there is kept
        return kind.make(*arguments)

    assert build_set(replace(kind, chunk=2, make=rest), request, cut, 1, report=False)
    assert files(tmp_path / "whole") == files(cut) and len(files(cut)) > sum(request.counts.values())
    assert not build_set(kind, request, cut, 1, report=False)
    with pytest.raises(UserError, match=f"another {kind.title}.*seed 2, not 3"):
        build_set(kind, replace(request, seed=3), cut, 1, report=False)


def test_a_folder_that_cannot_be_written_is_one_line(kind, tmp_path):
    kind, request = kind

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot be written .No space left on device.; mend that and run again"):
        build_set(replace(kind, make=full), request, tmp_path / "set", 1, report=False)


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same(kind, tmp_path):
    kind, request = kind
    for workers in (1, 2):
        assert build_set(replace(kind, chunk=2), request, tmp_path / str(workers), workers, report=False)
    assert files(tmp_path / "1") == files(tmp_path / "2")


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"test": -1}, {"image_size": 8}, {"seed": -1}])
def test_a_request_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError):
        SetRequest(**({"train": 1, "val": 1} | wrong))


@pytest.mark.parametrize(
    ("script", "more", "chosen"),
    [
        ("build_objects.py", ["--test", "3", "--textured"], {"test": 3, "textured": True, "plain": False}),
        ("build_objects.py", ["--plain"], {"test": 0, "textured": False, "plain": True}),
        ("build_scenes_detection.py", [], {"test": 0}),
        ("build_scenes_segmentation.py", [], {"test": 0, "plain": False}),
        ("build_scenes_segmentation.py", ["--plain"], {"test": 0, "plain": True}),
    ],
)
def test_scripts_hand_on_what_is_chosen(tmp_path, script, more, chosen):
    options = ["--train", "5", "--val", "4", "--seed", "6", "--image-size", "48", "--workers", "1"]
    done = run_script(ROOT / "data_prep" / script, "--output", tmp_path / "set", *options, *more)
    assert done.returncode == 0, done.stderr
    [manifest] = [path for path in (tmp_path / "set").glob("*ted.json")] or [tmp_path / "set/objects.json"]
    request = json.loads(manifest.read_text())["request"]
    assert request == {"train": 5, "val": 4, "seed": 6, "image_size": 48, "generator_version": ANY} | chosen


def test_plain_scenes_have_the_labels_of_textured_ones_and_objects_of_one_colour(tmp_path):
    for name, plain in (("plain", True), ("textured", False)):
        request = SegmentedRequest(12, 1, seed=4, image_size=64, plain=plain)
        build_set(SEGMENTED, request, tmp_path / name, 1, report=False)
    plain, textured = files(tmp_path / "plain"), files(tmp_path / "textured")
    labels = {path for path in plain if path.suffix == ".png"}
    assert len(labels) == 13 and all(plain[path] == textured[path] for path in labels)
    images = {path for path in plain if path.suffix == ".jpg"}
    assert sum(plain[path] != textured[path] for path in images) > 6
    inner, spreads = 0, {"plain": [], "textured": []}
    for name, found in spreads.items():
        for path in sorted(images):
            pixels = np.asarray(Image.open(tmp_path / name / path), dtype=float)
            label = np.asarray(
                Image.open(tmp_path / name / str(path).replace("images", "annotations").replace("jpg", "png"))
            )
            for value in range(1, 11):
                inside = label == value
                for axis in (0, 1):
                    for shift in (-2, 2):
                        inside &= np.roll(label == value, shift, axis)
                inner += int(inside.sum())
                if inside.sum() > 20:
                    found.append(pixels[inside].std(0).max())
    assert inner and np.median(spreads["plain"]) < 0.5 * np.median(spreads["textured"])
