"""Edges of what the metrics accept: empty batches, places outside an image, the ends of a histogram, other types."""

import numpy as np
import pytest
import torch

from pela_vl.metrics.agreement import agreement
from pela_vl.metrics.boxes import accuracy_by_split, box_iou, box_mass, choose_boxes, score_boxes
from pela_vl.metrics.class_similarity import ClassSimilarity
from pela_vl.metrics.classification import class_metrics, confusion_matrix
from pela_vl.metrics.gradcam import gradcam, hand_back, mean_over_tokens, patch_grid, resize_heat
from pela_vl.metrics.recall import image_ranks, recall_from_scores, text_ranks
from pela_vl.metrics.segmentation import class_ious, pixel_confusion, segmentation_metrics
from pela_vl.metrics.topk import TopK
from pela_vl.metrics.vqa_accuracy import Truth, vqa_accuracy


def test_a_batch_of_nothing_changes_nothing():
    topk, alike = TopK(3, (1, 2)), ClassSimilarity(3, 2)
    for counts, width in ((topk, 3), (alike, 2)):
        counts.update(np.ones((1, width)), np.array([1]))
        before = counts.counts.copy()
        counts.update(np.zeros((0, width)), np.zeros(0, dtype=np.int64))
        assert counts.counts.tolist() == before.tolist() and counts.counts.dtype == np.int64
    assert confusion_matrix(np.zeros(0), np.zeros(0), 2).tolist() == [[0, 0], [0, 0]]
    nothing = pixel_confusion(np.full((2, 2), 255), np.zeros((2, 2), dtype=int), 3)
    assert nothing.shape == (3, 3) and not nothing.any() and nothing.dtype == np.int64


def test_counts_keep_to_the_ends_of_the_classes():
    """The first class and the last are classes; what comes before and after is not."""
    rows = np.eye(3)
    TopK(3).update(rows, np.array([0, 1, 2]))
    for wrong in (-1, 3):
        message = r"^targets from .* to .* are not in 0\.\.2$"
        for counts in (TopK(3), ClassSimilarity(3, 3)):
            with pytest.raises(ValueError, match=message):
                counts.update(rows, np.array([0, wrong, 2]))
            assert not counts.counts.any()
        with pytest.raises(ValueError, match=rf"^class {wrong} is not in 0\.\.2$"):
            confusion_matrix(np.array([0, wrong]), np.array([0, 1]), 3)
        with pytest.raises(ValueError, match=rf"^class {wrong} is not in 0\.\.2$"):
            confusion_matrix(np.array([0, 1]), np.array([0, wrong]), 3)
    assert confusion_matrix(np.array([2]), np.array([0]), 3).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    square = np.zeros((2, 2), dtype=int)
    for counts, width in ((TopK(3), 3), (ClassSimilarity(3, 3), 3)):
        with pytest.raises(ValueError, match="do not pair$"):
            counts.update(np.zeros((2, width)), square)
        with pytest.raises(ValueError, match="do not pair$"):
            counts.update(np.zeros((2, width + 1)), square[0])
    with pytest.raises(ValueError, match="do not pair$"):
        confusion_matrix(square, square, 3)


def test_the_histogram_covers_minus_one_to_one_and_no_more_than_rounding_beyond():
    alike = ClassSimilarity(4, 2)
    alike.counts[:] = [2, 2, 2, 1]
    alike.sums[0], alike.sums[2] = [2 + 1e-9, 0], [2**0.5, 0]  # cosines a little above 1, -1 and 0
    counts, edges = alike.histogram()
    assert len(counts) == 40 and edges[[0, -1]].tolist() == [-1.0, 1.0]
    assert counts[0] == counts[-1] == 1 and counts[19:21].sum() == 1 and counts.sum() == 3
    assert ClassSimilarity(2, 2).sums.dtype == np.float64 and np.isnan(alike.per_class()[3])


@pytest.mark.filterwarnings("error")
def test_classes_of_no_or_one_image_warn_of_nothing():
    alike = ClassSimilarity(3, 2)
    alike.update(np.array([[0.1, 0.3]]), np.array([1]))
    assert np.isnan(alike.per_class()).all()
    topk = TopK(3)
    topk.update(np.eye(3)[:2], np.array([0, 0]))
    assert topk.per_class()[0] == 50 and np.isnan(topk.per_class()[1:]).all()
    assert np.isnan(class_ious(np.zeros((2, 2), dtype=int))).all()
    assert segmentation_metrics(np.diag([3, 0])) == {"mIoU": 100.0, "mAcc": 100.0, "aAcc": 100.0}


def test_the_mean_recall_is_by_the_first_k():
    topk = TopK(4, (2, 1, 4))
    topk.update(np.array([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0]]), np.array([0, 0, 1, 3]))
    assert topk.result() == {"top2": 75.0, "top1": 50.0, "top4": 100.0, "mean": pytest.approx(200 / 3)}
    assert topk.ks == (2, 1, 4) and TopK(2).ks == (1, 5) and topk.counts[:2].tolist() == [[2, 1, 0, 1], [2, 1, 0, 0]]


def test_what_of_a_box_lies_outside_the_image_has_no_heat():
    heat = torch.ones(1, 6, 9)
    boxes = [[-5, -3, 7, 8], [7, 4, 50, 50], [-9, 0, 5, 5], [20, 20, 3, 3], [0, 0, 9, 6], [2, 1, 0.5, 3]]
    assert box_mass(heat, torch.tensor(boxes)).tolist() == [[2 * 5, 2 * 2, 0, 0, 54, 0]]
    # 0.1 + 0.9 of fp32 numbers is below 1 in fp64, so the box has no row
    assert box_mass(heat, torch.tensor([[0.0, 0.1, 1.0, 0.9]])).item() == 0
    assert score_boxes(heat, torch.tensor([[0.0, 0, 4, 4]])).item() == pytest.approx(4)
    assert score_boxes(heat, torch.tensor([[0.0, 0, 4, 4]]), 1.0).dtype == torch.float64
    large = torch.full((1, 300, 300), 1.0)
    large[0, 0, 0] = 1e9  # in fp32 the sums from here on would lose the ones
    assert box_mass(large, torch.tensor([[290.0, 290, 3, 3]])).item() == 9
    assert choose_boxes(torch.tensor([[1.0, 2.0, 2.0], [5.0, 2.0, 5.0], [-1.0, -1.0, -1.0]])).tolist() == [1, 0, 0]


def test_iou_of_whole_pixels():
    for one, two, share in (
        ([0, 0, 4, 4], [0, 0, 4, 4], 1.0),
        ([0, 0, 4, 4], [2, 2, 4, 4], 4 / 28),
        ([0, 0, 4, 4], [3, 0, 4, 4], 0.0),  # one column
        ([0, 0, 4, 4], [0, 3, 4, 4], 0.0),  # one row
        ([0, 0, 4, 4], [9, 0, 4, 4], 0.0),
        ([5, 7, 10, 6], [8, 6, 3, 20], 18 / 102),
    ):
        assert box_iou(one, two) == pytest.approx(share) == box_iou(two, one)
        assert isinstance(box_iou(one, two), float)
    with pytest.raises(ValueError):
        accuracy_by_split(["a"], [0.5, 0.6])
    assert list(accuracy_by_split(["b", "a", "b"], [0.5, 0, 0.4999])) == ["b", "a"]


def test_heat_maps_on_one_pair():
    attention, gradient = torch.tensor([[[1.0, 2, 3]], [[4, 5, 6]]]), torch.tensor([[[1.0, -1, 2]], [[0.5, 1, -3]]])
    assert gradcam(attention[None], gradient[None]).tolist() == [[[1.5, 2.5, 3.0]]]
    maps, source = torch.tensor([[[8.0, 6.0]]]), torch.tensor([[0, 1, 1, 0]])
    assert hand_back(maps, None) is maps and hand_back(maps, source).tolist() == [[[8, 6, 6, 8]]]
    assert hand_back(maps, source, torch.tensor([[2.0, 3.0]])).tolist() == [[[4, 2, 2, 4]]]
    assert hand_back(maps[0], source, torch.tensor([[2.0, 3.0]])).tolist() == [[4, 2, 2, 4]]
    assert patch_grid(torch.arange(7.0), (2, 3)).tolist() == [[1, 2, 3], [4, 5, 6]]
    many = torch.tensor([[[[2.0]], [[4.0]], [[90.0]]], [[[1.0]], [[1.0]], [[4.0]]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert mean_over_tokens(many, mask).flatten().tolist() == pytest.approx([3, 2])
    assert mean_over_tokens(many.double(), mask).dtype == torch.float64
    resized = resize_heat(torch.rand(2, 3, 4).half(), 9, 8)
    assert resized.shape == (2, 9, 8) and resized.dtype == torch.float32


def test_ranks_are_of_lists_too_and_count_ties_against_the_model():
    i2t, owner = [[1, 1, 0], [2, 0, 2]], [0, 1, 1]
    assert text_ranks(i2t, owner).tolist() == [1, 1]
    assert image_ranks([[1, 0], [1, 1], [3, 2]], owner).tolist() == [0, 1, 1]
    found = recall_from_scores(i2t, [[1, 0], [1, 1], [3, 4]], owner)
    assert set(found) == {"tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "mean"}
    assert (found["tr1"], found["tr5"], found["ir1"]) == (0, 100, pytest.approx(200 / 3))
    assert found["mean"] == pytest.approx((0 + 100 + 100 + 200 / 3 + 100 + 100) / 6)
    for wrong, message in (
        ([0, 1, 2], r"outside 0\.\.1$"),
        ([0, -1, 1], r"outside 0\.\.1$"),
        ([1, 1, 1], "^image 0 has no text"),
    ):
        with pytest.raises(ValueError, match=message):
            text_ranks(i2t, wrong)


def test_types_of_questions_and_answers_are_counted_apart():
    truths = [Truth(("a",) * 10, "other", "what"), Truth(("b",) * 10, "number"), Truth(("c",) * 10, None, "how")]
    truths.append(Truth(("d",) * 10, "number", "what"))
    found = vqa_accuracy(["a", "x", "c", "d"], truths)
    assert found == {
        "overall": 75.0,
        "per_answer_type": {"number": 50.0, "other": 100.0},
        "per_question_type": {"how": 100.0, "what": 100.0},
    }
    assert list(found["per_answer_type"]) == ["number", "other"] and list(found["per_question_type"]) == ["how", "what"]
    with pytest.raises(ValueError, match="^there is no question"):
        vqa_accuracy([], [])
    with pytest.raises(ValueError, match="zip"):
        vqa_accuracy(["a"], truths)


def test_class_metrics_by_name():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    assert class_metrics(matrix, "abc") == {"accuracy": 62.5, "a": 75.0, "c": 50.0, "mean": 62.5}
    rows = np.array([[1.0, 2], [3, 1], [0, 1], [2, 2]])
    shuffled = rows[[1, 0, 2, 3]]
    assert agreement(rows, shuffled)["cosine"] < 1 and agreement(rows, rows[:, ::-1])["pearson"] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"^embeddings of shapes \(4, 2\) and \(3, 2\) do not pair$"):
        agreement(rows, rows[:3])
