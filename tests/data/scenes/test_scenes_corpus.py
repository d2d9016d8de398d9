"""The corpus on disk: formats, sameness, interruption, bad requests."""

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.scenes import SceneRequest, boxes, build_corpus, render, sample_scene
from pela_vl.data.scenes import corpus as corpus_module
from pela_vl.data.scenes.draw import object_masks
from pela_vl.data.scenes.export import dump_list

SCRIPT = Path(__file__).parents[3] / "data_prep" / "build_scenes.py"
SMALL = SceneRequest(train=60, val=45, test=12, seed=4)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "corpus"
    assert build_corpus(SMALL, folder, report=False)
    return folder


def test_karpathy_file(made):
    data = json.loads((made / "dataset_scenes.json").read_text())
    assert data["dataset"] == "scenes"
    images = data["images"]
    assert [image["imgid"] for image in images] == list(range(117))
    assert [image["split"] for image in images] == ["train"] * 60 + ["val"] * 45 + ["test"] * 12
    sentence_ids = [sentid for image in images for sentid in image["sentids"]]
    assert len(set(sentence_ids)) == 117 * 5
    for image in images:
        with Image.open(made / image["filepath"] / image["filename"]) as picture:
            assert picture.size == (64, 64) and picture.format == "JPEG"
        assert [s["sentid"] for s in image["sentences"]] == image["sentids"]
        for sentence in image["sentences"]:
            assert sentence["imgid"] == image["imgid"]
            assert sentence["tokens"] == "".join(c for c in sentence["raw"].lower() if c.isalnum() or c == " ").split()


def test_files_hold_the_picture_that_the_scene_is(made):
    scene = sample_scene(4, "val", 3)
    with Image.open(made / "images" / "val" / "scene_00000063.jpg") as picture:
        difference = np.abs(np.asarray(picture).astype(int) - render(scene, 64))
    assert difference.mean() < 4


def test_instances_by_cocos_own_reader(made):
    COCO = pytest.importorskip("pycocotools.coco").COCO
    coco = COCO(str(made / "instances.json"))
    assert len(coco.getImgIds()) == 117 and len(coco.getCatIds()) == 10
    scene = sample_scene(4, "train", 7)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[7]))
    assert [tuple(annotation["bbox"]) for annotation in annotations] == boxes(scene, 64)
    for annotation, thing, mask in zip(annotations, scene.things, object_masks(scene, 64), strict=True):
        assert coco.loadCats([annotation["category_id"]])[0]["name"] == thing.shape
        decoded = coco.annToMask(annotation).astype(bool)
        height, width = mask.inside.shape
        assert decoded.sum() == annotation["area"] == mask.inside.sum()
        assert np.array_equal(decoded[mask.top : mask.top + height, mask.left : mask.left + width], mask.inside)


def test_refs_point_at_instances_and_candidates(made):
    refs = pickle.loads((made / "refs(unc).p").read_bytes())
    instances = json.loads((made / "instances.json").read_text())
    candidates = json.loads((made / "dets.json").read_text())
    by_id = {annotation["id"]: annotation for annotation in instances["annotations"]}
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    assert len({ref["ref_id"] for ref in refs}) == len(refs) == len(by_id)
    assert {ref["split"] for ref in refs} == {"train", "val", "testA", "testB"}
    sentence_ids = [sent_id for ref in refs for sent_id in ref["sent_ids"]]
    assert len(set(sentence_ids)) == len(sentence_ids)
    for ref in refs:
        annotation = by_id[ref["ann_id"]]
        assert (annotation["image_id"], annotation["category_id"]) == (ref["image_id"], ref["category_id"])
        assert ref["file_name"] == files[ref["image_id"]] and (made / ref["file_name"]).is_file()
        assert [sentence["sent_id"] for sentence in ref["sentences"]] == ref["sent_ids"]
        x, y, width, height = annotation["bbox"]
        best = 0.0
        for a, b, c, d in candidates[str(ref["image_id"])]:
            across = max(0, min(x + width, a + c) - max(x, a)) * max(0, min(y + height, b + d) - max(y, b))
            best = max(best, across / (width * height + c * d - across))
        assert best > 0.6


@pytest.mark.parametrize("split, count", [("train", 60), ("val", 45), ("test", 12)])
def test_vqa_and_entailment_files(made, split, count):
    questions = json.loads((made / f"v2_OpenEnded_scenes_{split}_questions.json").read_text())["questions"]
    annotations = json.loads((made / f"v2_scenes_{split}_annotations.json").read_text())["annotations"]
    assert len(questions) == 4 * count
    assert [q["question_id"] for q in questions] == [a["question_id"] for a in annotations]
    for question, annotation in zip(questions, annotations, strict=True):
        assert question["image_id"] == annotation["image_id"]
        assert (made / "images" / split / f"scene_{question['image_id']:08d}.jpg").is_file()
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
    lines = (made / f"snli_ve_{'dev' if split == 'val' else split}.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) == len({pair["pairID"] for pair in pairs}) == 3 * count
    for pair in pairs:
        assert pair["gold_label"] in ("entailment", "neutral", "contradiction")
        assert (made / "images" / split / f"{pair['Flickr30K_ID']}.jpg").is_file()


def test_a_change_of_the_files_raises_the_version(made):
    """All but the images, and numbers that are measured in drawn pixels."""
    names = ["dataset_scenes.json", "captions_train.json", "captions_val.json", "captions_test.json"]
    names += [f"v2_{kind}_{split}_{end}.json" for split in ("train", "val", "test")
              for kind, end in (("OpenEnded_scenes", "questions"), ("scenes", "annotations"))]  # fmt: skip
    names += [f"snli_ve_{split}.jsonl" for split in ("train", "dev", "test")] + ["refs(unc).p"]
    digest = hashlib.sha256(b"".join((made / name).read_bytes() for name in names)).hexdigest()[:16]
    instances = json.loads((made / "instances.json").read_text())
    assert instances["info"] == {"description": "scenes"}
    totals = [len(instances["annotations"]), *np.sum([a["bbox"] for a in instances["annotations"]], 0).tolist()]
    found = [instances["images"][-1], sorted(instances["annotations"][0]), instances["categories"][0], totals]
    assert (corpus_module.GENERATOR_VERSION, digest, found) == (
        1,
        "70df8b6a377662f0",
        [
            {"id": 116, "file_name": "images/test/scene_00000116.jpg", "width": 64, "height": 64},
            ["area", "bbox", "category_id", "id", "image_id", "iscrowd", "segmentation"],
            {"id": 1, "name": "circle", "supercategory": "shape"},
            [354, 7760, 7828, 6725, 7002],
        ],
    )


def test_manifest_and_sheet(made):
    assert json.loads((made / "scenes.json").read_text())["request"] == {
        **{"train": 60, "val": 45, "test": 12, "seed": 4, "image_size": 64},
        "full_expressions": False,
        "generator_version": corpus_module.GENERATOR_VERSION,
    }
    with Image.open(made / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    assert not [path.name for path in made.iterdir() if path.name.startswith(".")]


def test_streamed_pickle_equals_the_plain_one():
    shared = "the same text"
    items = [{"a": [shared, shared, k], "b": {"c": shared}, "d": 2.5} for k in range(300)]
    file = io.BytesIO()
    dump_list(iter(items), file)
    assert pickle.loads(file.getvalue()) == items
    empty = io.BytesIO()
    dump_list([], empty)
    assert pickle.loads(empty.getvalue()) == []


def test_same_bytes_with_more_workers_and_other_chunks(made, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "CORPUS", replace(corpus_module.CORPUS, chunk=17))
    assert build_corpus(SMALL, tmp_path / "again", workers=2, report=False)
    assert digest(tmp_path / "again") == digest(made)


@pytest.mark.slow
def test_killed_and_run_again(tmp_path):
    def command(folder: str) -> list[str]:
        sizes = ["--train", "420", "--val", "5", "--test", "5", "--workers", "1"]
        return [sys.executable, str(SCRIPT), "--output", str(tmp_path / folder), *sizes]

    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    process = subprocess.Popen(command("killed"), env=environment, stderr=subprocess.DEVNULL)
    first = tmp_path / "killed" / ".parts" / "train_00000000_00000200.json"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "scenes.json").exists()
    kept = (tmp_path / "killed" / "images" / "train" / "scene_00000000.jpg").stat().st_mtime_ns
    for folder in ("killed", "whole"):
        subprocess.run(
            command(folder), env=environment, stderr=subprocess.DEVNULL, check=True, stdout=subprocess.DEVNULL
        )
    assert (tmp_path / "killed" / "images" / "train" / "scene_00000000.jpg").stat().st_mtime_ns == kept
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_a_finished_corpus_is_left_alone_and_another_refused(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert not build_corpus(SMALL, made, report=False)
    others = (
        SceneRequest(60, 45, 12, seed=5),
        SceneRequest(61, 45, 12, seed=4),
        SceneRequest(60, 45, 12, seed=4, image_size=96),
    )
    for other in (*others, SceneRequest(60, 45, 12, seed=4, full_expressions=True)):
        with pytest.raises(UserError, match="another corpus"):
            build_corpus(other, made, report=False)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_bad_requests(tmp_path):
    for arguments in ({"train": 0}, {"image_size": 8}, {"seed": -1}):
        with pytest.raises(UserError, match=f"--{next(iter(arguments)).replace('_', '-')}"):
            SceneRequest(**{"train": 1, "val": 1, "test": 1, **arguments})
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        build_corpus(SMALL, tmp_path, report=False)
    with pytest.raises(UserError, match="cannot be used as a folder"):
        build_corpus(SMALL, tmp_path / "mine.txt", report=False)
    with pytest.raises(UserError, match="--workers"):
        build_corpus(SMALL, tmp_path / "new", workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
