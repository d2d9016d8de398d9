"""RefCOCO+ lists from scenes' raw files, and what is refused."""

import json
import pickle
import runpy
import shutil
import sys

import pytest
from grounding_data import build, load
from tiny_runs import ROOT

from pela_vl.base.errors import UserError
from pela_vl.data.sets.captions import CaptionPairs
from pela_vl.data.sets.grounding import GroundingEval
from pela_vl.data.transforms import eval_transform


@pytest.fixture
def raw(scenes, tmp_path):
    """A copy of the raw files that a test may spoil."""
    for name in ("refs(unc).p", "instances.json", "dets.json"):
        shutil.copy(scenes / name, tmp_path / name)
    shutil.copytree(scenes / "images", tmp_path / "images")
    return tmp_path


def refs_of(folder):
    return pickle.loads((folder / "refs(unc).p").read_bytes())


def change(folder, name, edit):
    path = folder / name
    if name.endswith(".p"):
        content = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps(edit(content) or content, 2))
    else:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(edit(content) or content))


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["build_refcoco_plus.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "data_prep/build_refcoco_plus.py"), run_name="script")["main"]()


def test_lists_have_every_expression_and_boxes_are_the_objects(scenes, tmp_path):
    build(scenes, tmp_path)
    refs = refs_of(scenes)
    boxes = json.loads((tmp_path / "refs_boxes.json").read_text())
    instances = json.loads((scenes / "instances.json").read_text())
    true = {a["id"]: [float(v) for v in a["bbox"]] for a in instances["annotations"]}
    dets = json.loads((scenes / "dets.json").read_text())
    for name, splits in (("train", ("train",)), ("val", ("val",)), ("test", ("testA", "testB"))):
        expected = [
            {"image": r["file_name"], "text": s["sent"], "ref_id": r["ref_id"], "sent_id": s["sent_id"]}
            for r in refs
            if r["split"] in splits
            for s in r["sentences"]
        ]
        assert json.loads((tmp_path / f"refs_{name}.json").read_text()) == expected
    held_out = [r for r in refs if r["split"] != "train"]
    assert boxes["candidates"] == "detections"
    assert boxes["refs"] == {
        str(r["ref_id"]): {"image_id": r["image_id"], "split": r["split"], "box": true[r["ann_id"]]} for r in held_out
    }
    assert {k: v["boxes"] for k, v in boxes["images"].items()} == {k: dets[k] for k in boxes["images"]}


def test_the_data_sets_read_what_was_written(scenes, tmp_path):
    build(scenes, tmp_path)
    data = load(scenes, tmp_path)
    assert len(data) == len({e.image for e in data.expressions}) and data[0].shape == (3, 32, 32)
    assert sorted(k for own in data.by_image for k in own) == list(range(len(data.expressions)))
    for k, own in enumerate(data.by_image):
        assert all(data.expressions[e].image == k for e in own)
    train = CaptionPairs([tmp_path / "refs_train.json"], scenes, eval_transform(32), field="text")
    assert train.image_count == 24 and train[0, 0].caption


def test_lists_as_albef_published_them_work(scenes, tmp_path):
    build(scenes, tmp_path)
    entries = json.loads((tmp_path / "refs_val.json").read_text())
    for entry in entries:
        del entry["sent_id"]
    (tmp_path / "old.json").write_text(json.dumps(entries))
    data = GroundingEval([tmp_path / "old.json"], tmp_path / "refs_boxes.json", scenes, eval_transform(32))
    assert {e.sent_id for e in data.expressions} == {None}


def test_mattnets_list_and_albefs_dict_give_the_same_boxes(raw, scenes, tmp_path):
    build(scenes, tmp_path / "a")
    dets = json.loads((raw / "dets.json").read_text())
    flat = [{"image_id": int(k), "box": box, "score": 0.9, "det_id": 1} for k, found in dets.items() for box in found]
    (raw / "list.json").write_text(json.dumps(flat))
    (raw / "longer.json").write_text(json.dumps({k: [[*box, 0.9] for box in v] for k, v in dets.items()}))
    for name in ("list.json", "longer.json"):
        build(scenes, tmp_path / name[:-5], detections=raw / name)
        made = tmp_path / name[:-5] / "refs_boxes.json"
        assert made.read_text() == (tmp_path / "a/refs_boxes.json").read_text()


def test_without_detections_the_objects_are_candidates_and_it_is_said(scenes, tmp_path, monkeypatch, capsys):
    common = ["--refs", scenes / "refs(unc).p", "--instances", scenes / "instances.json", "--image-root", scenes]
    run(monkeypatch, *common, "--output", tmp_path)
    said = capsys.readouterr().out
    assert "the objects of instances.json, as no --detections are given" in said
    assert "published: 42278 objects 120191 expressions  (differs)" in said
    assert str(len([r for r in refs_of(scenes) if r["split"] == "val"])) in said.splitlines()[1]
    boxes = json.loads((tmp_path / "refcoco+_boxes.json").read_text())
    assert boxes["candidates"] == "instances"
    for ref in boxes["refs"].values():
        assert ref["box"] in boxes["images"][str(ref["image_id"])]["boxes"]


def _first(key, value):
    def edit(refs):
        refs[0][key] = value

    return edit


def _annotation(key, value):
    def edit(content):
        content["annotations"][0][key] = value

    return edit


@pytest.mark.parametrize(
    "file, edit, message",
    [
        ("refs(unc).p", lambda refs: {"a": 1}, "wants a list"),
        ("refs(unc).p", _first("split", "test"), "ref 0.split: 'test' is none of"),
        ("refs(unc).p", _first("ref_id", "1"), "ref 0.ref_id: wants a whole number"),
        ("refs(unc).p", _first("ann_id", 10**9), "is no annotation of"),
        ("refs(unc).p", _first("image_id", 5), "is not the image of annotation"),
        ("refs(unc).p", _first("sentences", []), "ref 0.sentences: is empty"),
        ("refs(unc).p", lambda refs: [refs[0], *refs], "stands twice"),
        ("instances.json", _annotation("bbox", [1, 2, 3]), r"annotations\[0\].bbox: wants \[x, y"),
        ("instances.json", _annotation("bbox", [1, 2, 0, 3]), "which has no area"),
        ("instances.json", lambda c: c["images"][0].update(file_name="../../x.jpg"), "not below the image root"),
        ("instances.json", lambda c: c.pop("annotations") and None, "has no list 'annotations'"),
        ("dets.json", lambda d: {"one": []}, "wants a list of boxes for each image id"),
        ("dets.json", lambda d: {"1": [["a", 1, 2, 3]]}, "image 1, box 0"),
        ("dets.json", lambda d: {"999999": [[1, 2, 3, 4]]}, "no held-out image has a candidate box"),
    ],
)
def test_bad_input_is_refused_with_its_place_and_nothing_is_written(raw, file, edit, message):
    change(raw, file, edit)
    with pytest.raises(UserError, match=message) as caught:
        build(raw, raw / "lists", detections=raw / "dets.json")
    assert "\n" not in str(caught.value) and not (raw / "lists").exists()


def test_absent_pictures_are_an_error_or_left_out_and_counted(scenes, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(scenes, copy, ignore=shutil.ignore_patterns("lists"))
    gone = next(r for r in refs_of(copy) if r["split"] == "val")
    (copy / gone["file_name"]).unlink()
    with pytest.raises(UserError, match="no such image"):
        build(copy, tmp_path / "lists")
    assert not (tmp_path / "lists").exists()
    build(copy, tmp_path / "lists", skip_missing=True)
    written = json.loads((tmp_path / "lists/refs_val.json").read_text())
    assert written and gone["file_name"] not in {e["image"] for e in written}


def test_lists_and_boxes_of_different_data_are_refused(scenes, tmp_path):
    build(scenes, tmp_path)
    entries = json.loads((tmp_path / "refs_val.json").read_text())
    for edit, message in (
        ({"ref_id": 10**9}, "is not in"),
        ({"image": "images/val/other.jpg"}, "but the list has it in"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps([entries[0] | edit]))
        with pytest.raises(UserError, match=message):
            GroundingEval([tmp_path / "bad.json"], tmp_path / "refs_boxes.json", scenes, eval_transform(32))
