"""Box scores by integral images against slices, IoU against the published function."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pela_vl.metrics.boxes import accuracy_by_split, box_iou, box_mass, choose_boxes, score_boxes

coordinate = st.floats(0, 40, allow_nan=False)
box = st.tuples(coordinate, coordinate, st.floats(0.5, 40), st.floats(0.5, 40))


def literal_mass(heat, box):
    """The published slice of one map."""
    return heat[int(box[1]) : int(box[1] + box[3]), int(box[0]) : int(box[0] + box[2])].double().sum()


def literal_iou(one, two):
    """Counts the corners as pixels, as RefCOCO's evaluation does."""
    x1, y1 = max(one[0], two[0]), max(one[1], two[1])
    x2, y2 = min(one[0] + one[2] - 1, two[0] + two[2] - 1), min(one[1] + one[3] - 1, two[1] + two[3] - 1)
    inter = 0
    if x1 < x2 and y1 < y2:
        inter = (x2 - x1 + 1) * (y2 - y1 + 1)
    return inter / (one[2] * one[3] + two[2] * two[3] - inter)


@settings(max_examples=60, deadline=None)
@given(st.lists(box, min_size=1, max_size=6), st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_mass_is_that_of_the_slices(boxes, height, width, seed):
    heat = torch.randn(2, height, width, generator=torch.Generator().manual_seed(seed))
    mass = box_mass(heat, torch.tensor(boxes, dtype=torch.float64))
    expected = torch.stack([torch.stack([literal_mass(one, b) for b in boxes]) for one in heat])
    torch.testing.assert_close(mass, expected, rtol=0, atol=1e-10)


def test_scores_divide_by_a_power_of_the_area_and_the_first_best_wins():
    heat = torch.zeros(2, 10, 10)
    heat[0, 2:4, 2:4] = 1.0
    boxes = torch.tensor([[0, 0, 10, 10], [2, 2, 2, 2], [2, 2, 2, 2], [7, 7, 1, 1]], dtype=torch.float64)
    scores = score_boxes(heat, boxes, 0.5)
    torch.testing.assert_close(scores[0], torch.tensor([0.4, 2.0, 2.0, 0.0], dtype=torch.float64))
    assert choose_boxes(scores).tolist() == [1, 0]
    assert choose_boxes(score_boxes(heat, boxes, 0.0)).tolist() == [0, 0]
    assert choose_boxes(torch.tensor([[-3.0, -1.0, -2.0]])).tolist() == [1]


@settings(max_examples=200, deadline=None)
@given(box, box)
def test_iou_is_the_published_one(one, two):
    assert math.isclose(box_iou(one, two), literal_iou(one, two), rel_tol=1e-12)
    assert box_iou(one, two) == pytest.approx(box_iou(two, one))
    if min(one[2:]) > 1:
        assert box_iou(one, one) == pytest.approx(1)


def test_a_shared_line_of_one_pixel_is_no_overlap():
    # continuous boxes would give 3 / 9
    assert box_iou((0, 0, 2, 3), (1, 0, 2, 3)) == 0


def test_accuracy_is_by_split_and_counts_exactly_a_half():
    splits = ["val", "testA", "val", "testA", "testA"]
    assert accuracy_by_split(splits, [0.5, 0.49, 0.1, 0.9, 1.0]) == {"val": 50.0, "testA": pytest.approx(200 / 3)}
