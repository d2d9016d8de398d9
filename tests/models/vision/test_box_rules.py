"""A detector's rules against literal restatements of the published ones, object by object and pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import roi_align

from pela_vl.models.vision import boxes as rule
from pela_vl.models.vision.boxes import BACKGROUND, Truth
from pela_vl.models.vision.detector_config import STAGES


def some_boxes(count, seed, side=100.0):
    draws = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    low = draws[:, :2] * side * 0.7
    return torch.cat([low, low + 2 + draws[:, 2:] * side * 0.3], 1)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("stage", STAGES)
def test_coding_is_torchvisions_with_weights_of_one_over_the_stds_and_its_own_inverse(stage):
    boxes, wanted = some_boxes(40, 0), some_boxes(40, 1)
    coder = BoxCoder(tuple(1 / std for std in stage.stds))
    deltas = rule.encode(boxes, wanted, stage.stds)
    torch.testing.assert_close(deltas, coder.encode_single(wanted, boxes), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rule.decode(deltas, boxes, stage.stds), wanted, rtol=1e-4, atol=1e-3)
    many = torch.randn(40, 3, 4)
    theirs = coder.decode_single(many.flatten(1), boxes).unflatten(1, (3, 4))
    torch.testing.assert_close(rule.decode(many, boxes, stage.stds), theirs, rtol=1e-4, atol=1e-3)


def test_a_step_in_size_is_limited_either_way():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]] * 2)
    deltas = torch.tensor([[0.0, 0.0, 999.0, -999.0], [0.5, -0.25, 0.0, 0.0]])
    first, second = rule.decode(deltas, boxes, (1.0, 1.0, 1.0, 1.0)).tolist()
    assert first[2] - first[0] == pytest.approx(10 * 1000 / 16) and first[3] - first[1] == pytest.approx(20 * 16 / 1000)
    assert second == pytest.approx([5.0, -5.0, 15.0, 15.0])


def test_assignment_takes_the_largest_overlap_from_the_threshold_on():
    boxes, truth = some_boxes(300, 2), some_boxes(7, 3)
    for threshold in (0.2, 0.5):
        found = rule.assign(boxes, truth, threshold).tolist()
        for box, number in zip(boxes.tolist(), found, strict=True):
            overlaps = [iou(box, other) for other in truth.tolist()]
            best = max(range(7), key=overlaps.__getitem__)
            assert number == (best if overlaps[best] >= threshold else BACKGROUND)
        assert len(set(found)) > 2
    exact = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert rule.assign(torch.tensor([[0.0, 0.0, 10.0, 5.0]]), exact, 0.5).tolist() == [0]
    assert rule.assign(boxes, truth[:0], 0.5).eq(BACKGROUND).all() and len(rule.assign(boxes[:0], truth, 0.5)) == 0


def test_sampling_adds_the_true_boxes_and_fills_with_background():
    truth = some_boxes(6, 4)
    boxes = torch.cat([truth.repeat(20, 1) + 0.1, some_boxes(200, 5) + 500])
    torch.manual_seed(0)
    found = rule.sample(boxes, truth, 0.5, 64, 0.25)
    assert len(found.boxes) == 64 and int((found.objects >= 0).sum()) == 16
    for box, number in zip(found.boxes.tolist(), found.objects.tolist(), strict=True):
        assert number == BACKGROUND or iou(box, truth[number].tolist()) >= 0.5
    few = rule.sample(some_boxes(9, 5) + 500, truth, 0.5, 512, 0.25)
    assert len(few.boxes) == 15 and int(few.given.sum()) == 6 and torch.equal(few.boxes[few.given], truth)
    labels = few.labels(Truth(truth, torch.tensor([4, 2, 0, 1, 3, 2])), 5)
    assert labels.tolist() == [4, 2, 0, 1, 3, 2] + [5] * 9
    none = rule.sample(some_boxes(9, 5), truth[:0], 0.5, 512, 0.25)
    assert none.labels(Truth(truth[:0], torch.zeros(0, dtype=torch.int64)), 5).eq(5).all() and not none.given.any()


def test_the_losses_are_the_published_ones():
    predicted, wanted = some_boxes(30, 6), some_boxes(30, 7)
    total = 0.0
    for a, b in zip(predicted.tolist(), wanted.tolist(), strict=True):
        overlap = iou(a, b)
        width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
        shared = overlap * ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) / (1 + overlap)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        total += 1 - (overlap - (width * height - union) / (width * height))
    assert float(rule.box_loss(predicted, wanted, 128)) == pytest.approx(10 * total / 128, rel=1e-4)
    assert float(rule.box_loss(predicted[:0], wanted[:0], 128)) == 0
    logits, labels = torch.randn(12, 5), torch.randint(0, 5, (12,))
    by_hand = -sum(logits[i].log_softmax(0)[labels[i]] for i in range(12)) / 12
    torch.testing.assert_close(rule.class_loss(logits, labels), by_hand)
    masks, targets = torch.randn(4, 28, 28), torch.rand(4, 28, 28).round()
    chance = masks.sigmoid()
    by_hand = -(targets * chance.log() + (1 - targets) * (1 - chance).log()).mean()
    torch.testing.assert_close(rule.mask_loss(masks, targets), by_hand)
    assert float(rule.mask_loss(masks[:0], targets[:0])) == 0


def test_mask_targets_are_the_share_of_the_mask_in_every_cell():
    """A cell's share is the mean of bilinear samples, one a pixel at least; a share of a half counts as the object."""
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((2, 40, 50)) > 0.4)
    boxes = torch.tensor([[3.2, 4.1, 30.7, 33.0], [10.0, 2.0, 45.5, 38.9]])
    found = rule.mask_targets(masks, torch.tensor([1, 0]), boxes, 7)
    for number, (mask, box) in enumerate(zip((masks[1], masks[0]), boxes.tolist(), strict=True)):
        share = literal_align(mask.float().numpy(), box, 7)
        clear = abs(share - 0.5) > 1e-4
        assert clear.mean() > 0.9
        assert np.array_equal(found[number].numpy()[clear], (share >= 0.5)[clear].astype(np.float32))


def literal_align(image, box, cells):
    """RoIAlign, aligned, with as many samples a cell as it has pixels (rounded up)."""
    x0, y0, x1, y1 = (value - 0.5 for value in box)
    width, height = (x1 - x0) / cells, (y1 - y0) / cells
    across, down = math.ceil(width), math.ceil(height)
    found = np.zeros((cells, cells))
    for row in range(cells):
        for column in range(cells):
            samples = [
                bilinear(image, y0 + (row + (j + 0.5) / down) * height, x0 + (column + (i + 0.5) / across) * width)
                for j in range(down)
                for i in range(across)
            ]
            found[row, column] = np.mean(samples)
    return found


def bilinear(image, y, x):
    height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down


def test_boxes_are_cut_out_of_the_level_that_suits_their_size():
    strides = (4, 8, 16, 32)
    maps = [torch.randn(2, 3, 256 // s, 256 // s) for s in strides]
    sides = (1.0, 40.0, 55.9, 56.1, 111.0, 113.0, 223.0, 230.0, 0.0)
    rois = torch.tensor([[i % 2, 4.0, 6.0, 4 + side, 6 + side] for i, side in enumerate(sides)])
    found = rule.pool(maps, strides, rois, 7)
    for roi, side, own in zip(rois, sides, found, strict=True):
        level = min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3)
        expected = roi_align(maps[level], roi[None], 7, 1 / strides[level], 0, True)[0]
        torch.testing.assert_close(own, expected)
    assert rule.pool(maps, strides, rois[:0], 7).shape == (0, 3, 7, 7)
