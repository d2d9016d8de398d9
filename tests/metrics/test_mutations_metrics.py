"""Changes of the metrics that nothing else notices."""

import numpy as np
import pytest
import torch

from pela_vl.metrics import recall
from pela_vl.metrics.agreement import agreement
from pela_vl.metrics.boxes import accuracy_by_split, box_iou, box_mass, score_boxes
from pela_vl.metrics.classification import class_metrics, confusion_matrix
from pela_vl.metrics.vqa_accuracy import Truth, question_accuracy, vqa_accuracy


def test_three_items_are_enough_and_whole_numbers_are_embeddings():
    rows = [[1, 0, 0], [1, 1, 0], [0, 2, 1]]
    assert agreement(rows, rows) == pytest.approx({"cosine": 1, "pearson": 1, "spearman": 1})
    with pytest.raises(ValueError, match="^2 items have too few pairs"):
        agreement(rows[:2], rows[:2])
    with pytest.raises(ValueError, match="^an embedding is zero or not finite$"):
        agreement([[0, 0], [1, 0], [1, 1]], [[1, 0], [1, 0], [1, 1]])


def test_half_precision_embeddings_are_compared_in_double():
    """The squares of such numbers overflow 16 bits."""
    rows = np.asarray([[300, 1], [300, 280], [5, 300]], dtype=np.float16)
    assert agreement(rows, rows)["cosine"] == pytest.approx(1, abs=1e-12)


def test_ranks_over_more_blocks_than_rows_in_one(monkeypatch):
    rng = np.random.default_rng(0)
    i2t, t2i, owner = rng.random((11, 22)), rng.random((22, 11)), np.arange(22) % 11
    whole = recall.text_ranks(i2t, owner), recall.image_ranks(t2i, owner)
    monkeypatch.setattr(recall, "_ROWS", 3)
    for a, b in zip(whole, (recall.text_ranks(i2t, owner), recall.image_ranks(t2i, owner)), strict=True):
        assert a.tolist() == b.tolist() and a.dtype == b.dtype == np.int64
    assert len(whole[0]) == 11 and len(whole[1]) == 22
    with pytest.raises(ValueError, match="do not go with"):
        recall.text_ranks(i2t, owner[None])
    with pytest.raises(ValueError, match="do not go with"):
        recall.text_ranks(i2t[None], owner)


def test_classes_given_as_other_numbers_and_out_of_range():
    targets, predicted = np.asarray([0.0, 1.0, 1.0]), np.asarray([0.0, 0.0, 1.0])
    assert confusion_matrix(targets, predicted, 2).tolist() == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match=r"class -1 is not in 0\.\.1$"):
        confusion_matrix(np.asarray([-1, 1]), np.asarray([0, 1]), 2)
    with pytest.raises(ValueError, match=r"class 2 is not in 0\.\.1$"):
        confusion_matrix(np.asarray([0, 2]), np.asarray([0, 1]), 2)
    with pytest.raises(ValueError, match="^no sample"):
        class_metrics(np.zeros((2, 2), dtype=int), ["a", "b"])


def test_line_breaks_and_tabs_are_blanks():
    people = ["on\ngrass", "on\tgrass"] + ["x"] * 8
    assert question_accuracy("on grass", people) == pytest.approx(0.6)
    assert question_accuracy("on\tgrass", ["on grass"] * 10) == question_accuracy("on\ngrass", ["on grass"] * 10) == 1
    with pytest.raises(ValueError, match="^accuracy needs"):
        question_accuracy("a", [])
    with pytest.raises(ValueError, match="^there is no question"):
        vqa_accuracy([], [])
    for predictions, truths in ((["a"], 2), (["a", "b"], 1)):
        with pytest.raises(ValueError):
            vqa_accuracy(predictions, [Truth(("a",))] * truths)


def test_boxes_beyond_the_picture_and_of_unequal_sides():
    heat = torch.arange(12.0).reshape(1, 3, 4)
    boxes = torch.tensor([[-2.0, -1.0, 4.0, 3.0], [1.0, 1.0, 9.0, 1.0]])
    mass = [float(heat[0, 0:2, 0:2].sum()), float(heat[0, 1:2, 1:4].sum())]
    assert box_mass(heat, boxes)[0].tolist() == pytest.approx(mass)
    assert score_boxes(heat, boxes)[0].tolist() == pytest.approx([mass[0] / 12**0.5, mass[1] / 9**0.5])
    # as published: what lies on one row or one column of pixels alone is no intersection
    assert box_iou([0, 0, 4, 4], [0, 3, 4, 4]) == 0 == box_iou([0, 0, 4, 4], [3, 0, 4, 4])
    assert box_iou([0, 0, 4, 4], [0, 2, 4, 4]) == pytest.approx(8 / 24)


def test_every_iou_has_its_split():
    assert accuracy_by_split(["b", "a", "b"], [0.5, 0.4, 0.1]) == {"b": 50.0, "a": 0.0}
    for splits in (["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError):
            accuracy_by_split(splits, [0.5, 0.6])
