"""Boxes [x, y, width, height] in pixels: scoring by a heat map, and IoU in the convention of the published evaluation.

Shapes: T heat maps over one image, K candidate boxes, H x W the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CORRECT_IOU = 0.5


def box_mass(heat: Tensor, boxes: Tensor) -> Tensor:
    """Sum of heat [T, H, W] over the pixels of boxes [K, 4]: float64 [T, K].

    The pixels are the rows int(y) to int(y + height), the last one excluded, and the columns alike, as published; parts
    outside the image count nothing. By integral images, so the cost does not grow with the boxes' sizes.
    """
    height, width = heat.shape[-2:]
    boxes = boxes.to(heat.device, torch.float64)
    left, right = (v.long().clamp(0, width) for v in (boxes[:, 0], boxes[:, 0] + boxes[:, 2]))
    top, bottom = (v.long().clamp(0, height) for v in (boxes[:, 1], boxes[:, 1] + boxes[:, 3]))
    # float64, because differences of sums over a whole image would lose half of float32's digits
    integral = heat.new_zeros((len(heat), height + 1, width + 1), dtype=torch.float64)
    integral[:, 1:, 1:] = heat.double().cumsum(1).cumsum(2)
    return integral[:, bottom, right] - integral[:, top, right] - integral[:, bottom, left] + integral[:, top, left]


def score_boxes(heat: Tensor, boxes: Tensor, area_power: float = 0.5) -> Tensor:
    """Score every box under every heat map: heat inside the box / area ** area_power.

    Args:
        heat: [T, H, W].
        boxes: [K, 4], each with a positive area.
        area_power: 0 prefers large boxes, 1 is the mean heat; the published evaluation takes 0.5.

    Returns:
        float64 [T, K].
    """
    area = (boxes[:, 2].double() * boxes[:, 3].double()).to(heat.device)
    return box_mass(heat, boxes) / area**area_power


def choose_boxes(scores: Tensor) -> Tensor:
    """Index [T] of the best of scores [T, K], the first one of equals.

    The published loop starts from a best score of 0, and keeps the previous expression's box where no score exceeds 0.
    Here the best score counts, whatever its sign.
    """
    numbers = torch.arange(scores.shape[1], device=scores.device)
    return torch.where(scores == scores.amax(1, keepdim=True), numbers, scores.shape[1]).amin(1)


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union as RefCOCO's evaluation computes it.

    The intersection counts pixels with both ends included (x to x + width - 1), the areas are width times height. An
    intersection one pixel wide or high counts as none.
    """
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right = min(a[0] + a[2] - 1, b[0] + b[2] - 1)
    bottom = min(a[1] + a[3] - 1, b[1] + b[3] - 1)
    shared = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0
    return float(shared) / (a[2] * a[3] + b[2] * b[3] - shared)


def accuracy_by_split(splits: Sequence[str], ious: Sequence[float]) -> dict[str, float]:
    """Percentage of expressions with an IoU of at least 0.5 in each split, in the order of first appearance."""
    hits: dict[str, list[bool]] = {}
    for split, iou in zip(splits, ious, strict=True):
        hits.setdefault(split, []).append(iou >= CORRECT_IOU)
    return {split: 100 * sum(values) / len(values) for split, values in hits.items()}
