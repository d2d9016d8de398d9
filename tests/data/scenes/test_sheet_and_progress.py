"""The contact sheet pixel by pixel, and what is said while scenes are made."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pela_vl.data.scenes import SceneRequest, build_corpus, captions, render, sample_scene
from pela_vl.data.scenes.chunks import SetRequest, run_jobs, split_jobs
from pela_vl.data.scenes.detected import DETECTED, _document
from pela_vl.data.scenes.labels import SEGMENTATION_CLASSES
from pela_vl.data.scenes.objects import OBJECTS, ObjectRequest, sample_object
from pela_vl.data.scenes.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Thing, places, relations
from pela_vl.data.scenes.segmented import SEGMENTED, SegmentedRequest
from pela_vl.data.scenes.sheet import write_contact_sheet


def test_a_cell_of_the_sheet_is_an_image_above_its_caption(tmp_path):
    write_contact_sheet(tmp_path / "sheet.png", 3, 48, 11)
    with Image.open(tmp_path / "sheet.png") as stored:
        assert stored.size == (8 * 216, 5 * 268) and stored.format == "PNG" and stored.mode == "RGB"
        sheet = np.asarray(stored)
    for place in range(40):
        row, column = divmod(place, 8)
        cell = sheet[268 * row : 268 * (row + 1), 216 * column : 216 * (column + 1)]
        wanted = Image.new("RGB", (216, 268), (255, 255, 255))
        if place < 11:
            scene = sample_scene(3, "val", place)
            large = np.repeat(np.repeat(render(scene, 48), 4, 0), 4, 1)
            wanted.paste(Image.fromarray(large), (12, 8))
            lines = "\n".join(textwrap.wrap(captions(scene)[place % 5], 28))
            ImageDraw.Draw(wanted).multiline_text(
                (12, 203), lines, fill=(0, 0, 0), font=ImageFont.load_default(14), spacing=1
            )
        assert np.array_equal(cell, np.asarray(wanted)), place


def test_chunks_that_are_there_count_as_done(capsys):
    request = SetRequest(5, 3, 2)
    jobs = split_jobs(request, 2)
    assert jobs == [
        ("train", 0, 2), ("train", 2, 4), ("train", 4, 5), ("val", 0, 2), ("val", 2, 3), ("test", 0, 2)
    ]  # fmt: skip
    made = []
    run_jobs(lambda job: made.append(job) or job[2] - job[1], jobs[2:], request, Path("x"), "scenes", 1, True)
    lines = capsys.readouterr().err.splitlines()
    assert made == jobs[2:] and lines[0].startswith("scenes:  50% 5/10") and "image/s" in lines[0]
    assert lines[-1].startswith("scenes: 100% 10/10") and len(lines) == 2
    run_jobs(lambda job: 1, jobs[:1], request, Path("x"), "scenes", 9, False)
    assert capsys.readouterr().err == ""


def test_a_corpus_shows_its_images_and_then_its_texts(tmp_path, capsys):
    assert build_corpus(SceneRequest(3, 2, 1, image_size=32), tmp_path / "corpus")
    lines = capsys.readouterr().err.splitlines()
    texts = [line for line in lines if line.startswith("writing ")]
    assert lines[: -len(texts)][-1].startswith("scenes: 100% 6/6") and "writing captions_val.json" in texts
    assert build_corpus(SceneRequest(3, 2, 1, image_size=32), tmp_path / "other", report=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind, request_of, folders", [
    (DETECTED, SetRequest(1, 1), ["images/val"]),
    (SEGMENTED, SegmentedRequest(1, 1), ["images/validation", "annotations/validation"]),
    (OBJECTS, ObjectRequest(1, 1), None),
])  # fmt: skip
def test_sets_are_written_as_their_public_models_are(kind, request_of, folders, tmp_path):
    assert kind.folders(request_of, "val") == (folders or [f"val/{name}" for name in request_of.classes])
    for folder in kind.folders(request_of, "val"):
        (tmp_path / folder).mkdir(parents=True)
    size = request_of.image_size
    kind.make(request_of, tmp_path, ("val", 4, 6))
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    if kind is OBJECTS:
        scenes = [sample_object(0, "val", index) for index in (4, 5)]
        assert sorted(f"val/{name}/000000{index}.jpg" for (_, name), index in zip(scenes, (4, 5), strict=True)) == files
    elif kind is SEGMENTED:
        assert files == sorted(
            f"{what}/validation/scene_val_0000000{k}.{end}"
            for what, end in (("images", "jpg"), ("annotations", "png"))
            for k in (4, 5)
        )
        assert kind.complete(request_of, tmp_path, lambda: [], print) == {}
        rows = (tmp_path / "objectInfo150.txt").read_text().splitlines()
        assert rows[0].split("\t") == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"] and len(rows) == 19
        assert [row.split("\t")[0::5] for row in rows[1:]] == [
            [str(number), name] for number, name in enumerate(SEGMENTATION_CLASSES, 1)
        ]
    else:
        assert files == ["images/val/00000004.jpg", "images/val/00000005.jpg"]
    for name in files:
        if name.endswith("jpg"):
            with Image.open(tmp_path / name) as image:
                assert image.size == (size, size) and image.format == "JPEG"
                assert {part[1:3] for part in image.layer} == {(1, 1)} and max(image.quantization[0]) < 20


def test_annotations_of_all_chunks_are_numbered_on():
    parts = [
        {"images": [{"id": 1}], "annotations": [{"image_id": 1}, {"image_id": 1}]},
        {"images": [{"id": 2}], "annotations": [{"image_id": 2}]},
    ]
    found = _document(parts)
    assert found["images"] == [{"id": 1}, {"id": 2}]
    assert found["annotations"] == [{"image_id": 1, "id": 1}, {"image_id": 1, "id": 2}, {"image_id": 2, "id": 3}]
    assert found["categories"] == [{"id": 1 + k, "name": name} for k, name in enumerate(SHAPES)]


def test_classes_of_objects_come_round_in_turn():
    for textured, plain in ((False, False), (True, False), (False, True)):
        names = [sample_object(0, "train", k, textured, plain)[1] for k in range(400)]
        request = ObjectRequest(1, 1, textured=textured, plain=plain)
        assert sorted(set(names)) == request.classes and len(request.classes) == (400 if textured else 100)
        assert names[13] == f"{COLOURS[3]}_{SHAPES[1]}" + (f"_{TEXTURES[0]}" if textured else "")
        things = [sample_object(0, "train", k, textured, plain)[0].things[0] for k in (0, 13, 399)]
        assert plain == all(thing.texture == "plain" for thing in things) or textured
        for thing in things:
            assert 0.6 <= thing.diameter <= 0.85 and thing.size == "medium"
            assert all(
                thing.diameter / 2 + 1 / 32 <= at <= 1 - thing.diameter / 2 - 1 / 32 for at in (thing.x, thing.y)
            )
    assert len({sample_object(0, "train", k)[0].background for k in range(60)}) == len(BACKGROUNDS)
    assert sample_object(0, "train", 3)[0] != sample_object(0, "val", 3)[0] != sample_object(1, "val", 3)[0]


@pytest.mark.parametrize("x, y, found", [
    (0.5, 0.5, ["middle"]),
    (0.33, 0.5, ["left"]),
    (0.67, 0.7, ["right", "bottom"]),
    (0.41, 0.41, ["middle"]),
    (0.39, 0.5, []),
    (0.35, 0.65, []),
    (0.5, 0.2, ["top"]),
])  # fmt: skip
def test_places_are_clear_to_the_eye(x, y, found):
    assert places(Thing("red", "star", "small", "plain", x, y)) == found


@pytest.mark.parametrize("dx, dy, found", [
    (0.16, 0.0, []),
    (0.18, 0.0, ["right"]),
    (-0.18, 0.05, ["left"]),
    (0.3, 0.3, ["right", "below"]),
    (0.3, -0.2, ["right"]),
    (0.0, -0.4, ["above"]),
    (0.2, 0.4, ["below"]),
])  # fmt: skip
def test_relations_leave_no_doubt(dx, dy, found):
    base = Thing("red", "star", "small", "plain", 0.5, 0.5)
    assert relations(Thing("red", "ring", "small", "plain", 0.5 + dx, 0.5 + dy), base) == found
