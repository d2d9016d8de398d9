"""No image of a test or validation set enters, whichever way it is recognised."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from corrupt_web import noise
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.corpus import Filters, Request, build_corpus
from pela_vl.data.corpus.units import held_out_units, source_units


@pytest.fixture
def pictures(tmp_path) -> Path:
    """0.png ... 5.png in one folder; the same pixels as TIFF in another, under names that say nothing."""
    (tmp_path / "pics").mkdir()
    (tmp_path / "tests").mkdir()
    for number in range(6):
        picture = noise(np.random.default_rng(number))
        picture.save(tmp_path / "pics" / f"{number}.png")
        picture.save(tmp_path / "tests" / f"{'abcdef'[number]}.tif")
    return tmp_path


def coco(folder: Path) -> list[str]:
    images = [{"id": 100 + k, "file_name": f"{k}.png"} for k in range(6)]
    images[2]["flickr_url"] = "http://farm1.staticflickr.com/9/777_ab.jpg"
    annotations = [{"image_id": 100 + k, "caption": f"picture {k}"} for k in range(6)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return [str(folder / "captions.json"), str(folder / "pics")]


def drops(folder: Path, held_out: list, sources: list | None = None) -> dict[str | int, str]:
    sources = source_units("coco", "coco", coco(folder)) if sources is None else sources
    filters = {unit.source: Filters() for unit in sources}
    request = Request(tuple(sources), tuple(held_out), filters, None, str(folder))
    build_corpus(request, folder / "out", progress=False)
    if not (folder / "out" / "dropped.jsonl").exists():
        return {}
    lines = (folder / "out" / "dropped.jsonl").read_text().splitlines()
    return {drop["id"]: drop["reason"] for drop in map(json.loads, lines)}


def test_nothing_held_out_drops_nothing(pictures):
    assert drops(pictures, []) == {}


def test_karpathy_by_number_name_and_content(pictures):
    entries = [
        {"filename": "x.jpg", "cocoid": 100, "split": "test"},
        {"filename": "1.png", "split": "val"},
        {"filename": "a.jpg", "cocoid": 103, "split": "train"},
        {"filename": "b.jpg", "cocoid": 104, "split": "restval"},
        {"filepath": "tests", "filename": "f.tif", "cocoid": 9, "split": "test"},
    ]
    (pictures / "karpathy.json").write_text(json.dumps({"dataset": "coco", "images": entries}))
    units = held_out_units("karpathy", [str(pictures / "karpathy.json"), str(pictures)])
    assert drops(pictures, units) == {100: "held_out_id", 101: "held_out_id", 105: "held_out_content"}
    held_out = json.loads((pictures / "out" / "report.json").read_text())["held_out"]
    assert held_out == {"images": 3, "compared_by_content": 1, "unread": {"missing": 2}}


def test_refs_and_their_splits(pictures):
    refs = [{"image_id": 100 + k, "split": split} for k, split in enumerate(["train", "val", "testA", "testB"])]
    (pictures / "refs.p").write_bytes(pickle.dumps(refs, protocol=0))
    units = held_out_units("refs", [str(pictures / "refs.p")])
    assert drops(pictures, units) == {101: "held_out_id", 102: "held_out_id", 103: "held_out_id"}


def test_a_pickle_is_read_but_never_run(pictures):
    class Evil:
        def __reduce__(self):
            return Path.touch, (pictures / "ran",)

    (pictures / "refs.p").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UserError, match="is not loaded, as it could run code|no pickle or a damaged one"):
        drops(pictures, held_out_units("refs", [str(pictures / "refs.p")]))
    assert not (pictures / "ran").exists()


def test_vqa_questions_by_number_and_by_cocos_file_names(pictures):
    (pictures / "tests" / "f.tif").rename(pictures / "tests" / "COCO_test2015_000000000901.jpg")
    questions = [{"image_id": number, "question_id": k} for k, number in enumerate((104, 104, 901))]
    (pictures / "questions.json").write_text(json.dumps({"questions": questions, "data_subtype": "test2015"}))
    units = held_out_units("vqa", [str(pictures / "questions.json"), str(pictures / "tests")])
    assert drops(pictures, units) == {104: "held_out_id", 105: "held_out_content"}


def test_a_folder_of_pictures_by_content(pictures):
    for name in "cde":
        (pictures / "tests" / f"{name}.tif").unlink()
    held_out = held_out_units("images", [str(pictures / "tests")])
    assert drops(pictures, held_out) == dict.fromkeys((100, 101, 105), "held_out_content")


@pytest.mark.parametrize("there, reason", [(True, "held_out_id"), (False, "missing")])
def test_what_a_held_out_picture_is_called_elsewhere_is_held_out_too(pictures, there, reason):
    """COCO's 102 is a test image. SBU knows it by Flickr's number, Visual Genome by COCO's."""
    entries = [{"filename": "x.jpg", "cocoid": 102, "split": "test"}]
    (pictures / "karpathy.json").write_text(json.dumps({"images": entries}))
    (pictures / "sbu").mkdir()
    for row in range(2):
        noise(np.random.default_rng(50 + row)).save(pictures / "sbu" / f"{row}.jpg")
    rows = (
        "http://static.flickr.com/1/777_cd.jpg\tthe same photograph\nhttp://static.flickr.com/1/778_cd.jpg\tanother\n"
    )
    (pictures / "sbu.tsv").write_text(rows)
    noise(np.random.default_rng(60)).save(pictures / "pics" / "31.jpg")
    (pictures / "regions.json").write_text(json.dumps([{"id": 31, "regions": [{"phrase": "a thing"}]}]))
    (pictures / "image_data.json").write_text(json.dumps([{"image_id": 31, "coco_id": 102}]))
    sources = [
        *source_units("coco", "coco", coco(pictures)),
        *source_units("vg", "vg", [str(pictures / name) for name in ("regions.json", "pics", "image_data.json")]),
        *source_units("sbu", "table", [str(pictures / "sbu.tsv"), str(pictures / "sbu")]),
    ]
    held_out = held_out_units("karpathy", [str(pictures / "karpathy.json")])
    if not there:
        (pictures / "pics" / "2.png").unlink()
    assert drops(pictures, held_out, sources) == {102: reason, 31: "held_out_id", 0: "held_out_id"}


def test_flickr30k_names_are_flickrs_numbers(pictures):
    (pictures / "karpathy.json").write_text(
        json.dumps({"dataset": "flickr30k", "images": [{"filename": "777.jpg", "split": "val", "imgid": 1}]})
    )
    assert drops(pictures, held_out_units("karpathy", [str(pictures / "karpathy.json")])) == {102: "held_out_id"}


@pytest.mark.parametrize(
    "kind, content, message",
    [
        ("karpathy", '{"annotations": []}', "has no list 'images'"),
        ("karpathy", '{"images": [1]}', r"images\[0\]: wants an object with 'filename'"),
        ("vqa", '{"questions": [{"image_id": "1"}]}', r"questions\[0\]: wants a whole number"),
        ("vqa", "[]", "has no list 'questions'"),
        ("refs", "{}", "is not loaded, as it could run code|no pickle or a damaged one"),
    ],
)
def test_files_of_another_kind(pictures, kind, content, message):
    (pictures / "file").write_text(content)
    with pytest.raises(UserError, match=message):
        drops(pictures, held_out_units(kind, [str(pictures / "file")]))


def test_a_table_row_whose_picture_came_from_elsewhere(tmp_path):
    """Downloaded from a list in another order: the captions would be other pictures'."""
    folder = tmp_path / "pics" / "00000"
    folder.mkdir(parents=True)
    for row, url in enumerate(("http://x.org/0.jpg", "http://x.org/other.jpg")):
        Image.new("RGB", (70, 70), (row * 90, 0, 0)).save(folder / f"{row:09d}.jpg")
        (folder / f"{row:09d}.json").write_text(json.dumps({"url": url}))
    (tmp_path / "table.tsv").write_text("one\thttp://x.org/0.jpg\ntwo\thttp://x.org/1.jpg\n")
    sources = source_units("cc3m_val", "table", [str(tmp_path / "table.tsv"), str(tmp_path / "pics")])
    assert drops(tmp_path, [], sources) == {1: "other_download"}
