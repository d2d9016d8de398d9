"""Every field of a list arrives in its place, and what is not said is thirty words, seed nought and no cache."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pela_vl.data.label_images import LabelValues
from pela_vl.data.sets.captions import CaptionPairs, EvalImages, RetrievalEval
from pela_vl.data.sets.detection import DetectionImages
from pela_vl.data.sets.entailment import LABELS, EntailmentEval, EntailmentPairs
from pela_vl.data.sets.grounding import FORMAT, GroundingEval
from pela_vl.data.sets.labelled import LabelledImages, load_labelled
from pela_vl.data.sets.segmentation import PairReader, SegmentedImages
from pela_vl.data.sets.vqa import VqaEval, VqaImageReader, VqaQuestions, load_asked, weighted_answers
from pela_vl.data.transforms import eval_transform, train_transform

WORDS = " ".join(f"w{number}" for number in range(60))
SIZES = {"a.png": (40, 30), "b.png": (36, 50)}


@pytest.fixture
def root(tmp_path):
    for number, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def write(root, name, content):
    (root / name).write_text(json.dumps(content))
    return root / name


def count(text: str) -> int:
    return len(text.split())


def test_expressions_and_candidates(root):
    boxes = [[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 11.0, 12.0], [5.5, 6.0, 7.0, 8.0]]
    content = {
        "format": FORMAT,
        "candidates": "detections",
        "images": {
            "7": {"image": "a.png", "width": 40, "height": 30, "boxes": boxes[:2]},
            "8": {"image": "b.png", "width": 36, "height": 50, "boxes": []},
        },
        "refs": {
            "70": {"image_id": 7, "split": "val", "box": boxes[2]},
            "80": {"image_id": 8, "split": "testA", "box": boxes[0]},
        },
    }
    entries = [
        {"image": "b.png", "text": "One!", "ref_id": 80, "sent_id": 5},
        {"image": "a.png", "text": WORDS, "ref_id": 70, "sent_id": 6},
        {"image": "b.png", "text": "two", "ref_id": 80},
    ]
    boxes_file = write(root, "boxes.json", content)
    data = GroundingEval([write(root, "refs.json", entries)], boxes_file, root, eval_transform(32))
    assert [(e.text, e.raw, e.ref_id, e.sent_id, e.image, e.split, e.box) for e in data.expressions] == [
        ("one", "One!", 80, 5, 0, "testA", (1.0, 2.0, 10.0, 20.0)),
        (" ".join(WORDS.split()[:30]), WORDS, 70, 6, 1, "val", (5.5, 6.0, 7.0, 8.0)),
        ("two", "two", 80, None, 0, "testA", (1.0, 2.0, 10.0, 20.0)),
    ]
    assert [(i.path, i.width, i.height, i.candidates.tolist()) for i in data.images] == [
        ("b.png", 36, 50, []),
        ("a.png", 40, 30, boxes[:2]),
    ]
    assert data.images[0].candidates.shape == (0, 4) and data.images[1].candidates.dtype == torch.float64
    assert data.by_image == [[0, 2], [1]] and len(data) == 2 and data.candidates_from == "detections"
    assert data.read.stored_pixels and data.read.cache_mb == 0
    for words, cache in ((3, 0), (2, 1.5)):
        other = GroundingEval([root / "refs.json"], boxes_file, root, eval_transform(32), words, cache)
        assert count(other.expressions[1].text) == words and other.read.cache_mb == cache


def test_captions(root):
    train = [{"image": "a.png", "caption": WORDS, "image_id": 3}, {"image": "b.png", "caption": ["one", WORDS]}]
    data = CaptionPairs([write(root, "train.json", train)], root, train_transform(32))
    assert data.seed == 0 and data.read.cache_mb == 0 and not data.read.stored_pixels and len(data) == 2
    assert count(data[(0, 0)].caption) == 30 and {count(data[(epoch, 1)].caption) for epoch in range(20)} == {1, 30}
    same = CaptionPairs([root / "train.json"], root, train_transform(32), seed=0)[(4, 1)]
    assert torch.equal(same.image, data[(4, 1)].image)
    other = CaptionPairs([root / "train.json"], root, train_transform(32), 7, 3, 2.0, stored_pixels=True)
    assert (
        count(other[(0, 0)].caption) == 7 and (other.seed, other.read.cache_mb) == (3, 2.0) and other.read.stored_pixels
    )
    assert not torch.equal(other[(4, 1)].image, data[(4, 1)].image)
    test = [{"image": "b.png", "caption": ["one", WORDS]}, {"image": "a.png", "caption": ["two"]}]
    found = RetrievalEval(write(root, "test.json", test), root, eval_transform(32))
    assert list(found.images) == ["b.png", "a.png"] and [count(text) for text in found.texts] == [1, 30, 1]
    assert found.text2image.tolist() == [0, 0, 1] and found.image2texts == [[0, 1], [2]]
    assert (
        found.read.cache_mb == 0
        and RetrievalEval(root / "test.json", root, eval_transform(32), 9, 4).read.cache_mb == 4
    )
    nothing = EvalImages((), root, eval_transform(32))
    assert nothing.text2image.dtype == found.text2image.dtype == np.int64 and len(nothing.texts) == 0


def test_entailment(root):
    rows = [
        {"image": f"{'ab'[k % 2]}.png", "sentence": WORDS, "label": label}
        for k, label in enumerate((*LABELS, "neutral"))
    ]
    file = write(root, "e.json", rows)
    data, found = EntailmentPairs([file], root, train_transform(32)), EntailmentEval(file, root, eval_transform(32))
    assert data.targets.tolist() == found.targets.tolist() == [0, 1, 2, 1] and data.targets.dtype == np.int64
    assert (data.seed, data.max_words, data.read.cache_mb, found.read.cache_mb) == (0, 30, 0, 0)
    assert count(data[(0, 2)].sentence) == 30 == count(found.texts[0]) and data[(0, 2)].target == 2
    assert found.text2image.tolist() == [0, 1, 0, 1]
    other = EntailmentPairs([file], root, train_transform(32), 5, 2, 1.0)
    assert count(other[(0, 0)].sentence) == 5 and (other.seed, other.read.cache_mb) == (2, 1.0)
    assert count(EntailmentEval(file, root, eval_transform(32), 4, 1.0).texts[0]) == 4


def test_questions(root):
    train = [
        {"question_id": 4, "question": WORDS, "image": "a.png", "dataset": "vqa", "answer": ["yes", "no", "yes"]},
        {"question_id": 5, "question": "what", "image": "b.png", "dataset": "vg", "answer": ["dog"]},
    ]
    file = write(root, "q.json", train)
    data = VqaQuestions([file], root, train_transform(32))
    assert data.seed == 0 and count(data[(0, 0)].question) == 30
    assert count(VqaQuestions([file], root, train_transform(32), max_words=6)[(0, 0)].question) == 6
    assert weighted_answers(["yes", "no", "yes"], "vqa") == (("yes", "no"), pytest.approx((2 / 3, 1 / 3)))
    assert weighted_answers(["dog"], "vg") == (("dog",), (0.5,))
    asked = load_asked(file, VqaImageReader(root))
    found = VqaEval(asked, VqaImageReader(root), eval_transform(32))
    assert [count(text) for text in found.texts] == [50, 1]


def test_labels(root):
    entries = [{"image": "a.png", "label": "x"}, {"image": "b.png", "label": "y"}]
    data = LabelledImages(load_labelled([write(root, "l.json", entries)], root), train_transform(32))
    assert (data.seed, data.read.cache_mb, data.order) == (0, 0, None) and data[(0, 1)].target == 1
    assert LabelledImages(load_labelled([root / "l.json"], root), None, 3, 2.5).read.cache_mb == 2.5


def test_crops_and_detections(root):
    images = SegmentedImages([("a.png", "a.png")], PairReader(root, LabelValues(("x",), (1,))), None)
    assert images.seed == 0 and images.read.images.cache_mb == 0 and images.read.images.stored_pixels
    assert SegmentedImages([], images.read, None, 4).seed == 4
    Image.new("RGB", (40, 44)).save(root / "c.png")
    sizes = {"c.png": (40, 44), "b.png": SIZES["b.png"]}
    box = {"id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2, 9, 8], "area": 72, "iscrowd": 0}
    content = {
        "images": [
            {"id": k, "file_name": name, "width": w, "height": h} for k, (name, (w, h)) in enumerate(sizes.items(), 1)
        ],
        "annotations": [box | {"segmentation": [[1, 2, 10, 2, 10, 10]]}],
        "categories": [{"id": 3, "name": "x"}],
    }
    file = str(write(root, "d.json", content))
    found = DetectionImages([file], str(root))
    assert found.seed == 0 and len(found) == 1 and len(DetectionImages([file], str(root), keep_empty=True)) == 2
    assert (
        found.read.reader.cache_mb == 0 and DetectionImages([file], str(root), cache_mb=1.5).read.reader.cache_mb == 1.5
    )
