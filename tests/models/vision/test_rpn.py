"""Anchors and which of them learn, against literal restatements of the published rules."""

import math

import torch

from pela_vl.models.vision.rpn import Anchors, Rpn, label_anchors


def test_anchors_stand_on_fixed_strides_and_are_not_rounded():
    strides = (4, 8, 16)
    anchors = Anchors(8.0, (0.5, 1.0, 2.0), strides)
    maps = [torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 1, 2)]
    images = type("Images", (), {"image_sizes": [(12, 20)] * 2})()
    found = anchors(images, maps)
    expected = []
    for stride, level in zip(strides, maps, strict=True):
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                for ratio in (0.5, 1.0, 2.0):
                    width, height = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                    x, y = column * stride, row * stride
                    expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert len(found) == 2 and torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], torch.tensor(expected))


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def literal_labels(anchors, truth, height, width):
    """The published assigner: thresholds first, then each object in turn takes its best anchors from 0.3 on."""
    labels, matched = [], []
    inside = [a[0] >= 0 and a[1] >= 0 and a[2] < width and a[3] < height for a in anchors]
    for anchor, within in zip(anchors, inside, strict=True):
        overlaps = [iou(anchor, box) for box in truth]
        best = max(range(len(truth)), key=overlaps.__getitem__)
        label = 1 if overlaps[best] >= 0.7 else 0 if overlaps[best] < 0.3 else -1
        labels.append(label if within else -1)
        matched.append(best)
    for number, box in enumerate(truth):
        overlaps = [iou(anchor, box) if within else -1 for anchor, within in zip(anchors, inside, strict=True)]
        if max(overlaps) >= 0.3:
            for place, overlap in enumerate(overlaps):
                if overlap == max(overlaps):
                    labels[place], matched[place] = 1, number
    return labels, matched


def test_labels_are_those_of_the_published_assigner():
    grid = Anchors(4.0, (0.5, 1.0, 2.0), (8, 16))
    images = type("Images", (), {"image_sizes": [(90, 110)]})()
    anchors = grid(images, [torch.zeros(1, 1, 12, 14), torch.zeros(1, 1, 6, 7)])[0]
    draws = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    low = draws[:, :2] * torch.tensor([60.0, 50.0])
    truth = torch.cat([low, low + 12 + 30 * draws[:, 2:]], 1)
    truth = torch.cat([truth, truth[:1], torch.tensor([[3.0, 3.0, 6.0, 5.0]])])  # one twice, one too small for any
    labels, matched = label_anchors(anchors, truth, torch.tensor([90, 110]))
    expected, numbers = literal_labels(anchors.double().tolist(), truth.double().tolist(), 90, 110)
    assert labels.int().tolist() == expected and {-1, 0, 1} == set(expected)
    chosen = [place for place, label in enumerate(expected) if label == 1]
    assert torch.equal(matched[chosen], truth[[numbers[place] for place in chosen]])


def test_an_image_without_objects_is_background():
    anchors = torch.tensor([[1.0, 1.0, 5.0, 5.0], [-1.0, 0.0, 4.0, 4.0], [0.0, 0.0, 9.0, 10.0], [0.0, 0.0, 8.0, 10.0]])
    labels, _ = label_anchors(anchors, torch.zeros(0, 4), torch.tensor([11, 9]))
    assert labels.tolist() == [0, -1, -1, 0]


def test_an_image_that_is_smaller_than_all_anchors_learns_from_all_of_them():
    """From none its losses would be means of nothing, and so NaN."""
    anchors = torch.tensor([[-4.0, -4, 20, 20], [0, 0, 30, 12], [-9, -9, 40, 40]])
    size, truth = torch.tensor([10, 10]), torch.tensor([[1.0, 1, 9, 9], [0, 0, 10, 10]])
    labels, boxes = label_anchors(anchors, truth[1:], size)
    assert labels.tolist() == [0.0, 0.0, 0.0] and boxes.tolist() == [truth[1].tolist()] * 3
    assert label_anchors(anchors[:1] / 2, truth[:1], size)[0].tolist() == [1.0]
    assert label_anchors(anchors, torch.zeros(0, 4), size)[0].tolist() == [0.0] * 3
    one_inside = torch.cat([anchors, torch.tensor([[0.0, 0, 9, 9]])])
    assert label_anchors(one_inside, truth[:1], size)[0].tolist() == [-1.0, -1.0, -1.0, 1.0]


def test_it_counts_proposals_as_it_is_told():
    torch.manual_seed(0)
    rpn = Rpn(8, 4.0, (0.5, 1.0, 2.0), (4, 8), (50, 20), (40, 10), 16)
    from torchvision.models.detection.image_list import ImageList

    levels = {"0": torch.randn(2, 8, 16, 16), "1": torch.randn(2, 8, 8, 8)}
    images = ImageList(torch.zeros(2, 3, 64, 64), [(64, 64), (40, 64)])
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "size": torch.tensor([64, 64])},
               {"boxes": torch.zeros(0, 4), "size": torch.tensor([40, 64])}]  # fmt: skip
    boxes, losses = rpn(images, levels, targets)
    assert [len(own) <= 40 for own in boxes] == [True, True] and set(losses) == {"loss_objectness", "loss_rpn_box_reg"}
    assert boxes[1][:, 3].max() <= 40
    boxes, losses = rpn.eval()(images, levels)
    assert [len(own) <= 10 for own in boxes] == [True, True] and not losses
