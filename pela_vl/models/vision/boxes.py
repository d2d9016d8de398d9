"""Boxes of a detector: coding, assignment, sampling, losses and mask targets, as the published Cascade Mask R-CNN has them.

Shapes: N boxes [x1, y1, x2, y2] in pixels, G true objects, S sampled boxes, C classes, M pixels a side of a mask, H x W an
image.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou, generalized_box_iou_loss, roi_align

LARGEST_STEP = math.log(1000 / 16)
"""Largest logarithm of a box's change in width or height, either way."""
BACKGROUND = -1
"""Number of the true object of a box that has none."""
GIOU_WEIGHT = 10.0


@dataclass(frozen=True)
class Truth:
    """The objects of one image: boxes [G, 4], classes int64 [G], masks bool [G, H, W] or None where there are none."""

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Sampled:
    """Boxes of one image that a stage learns from. boxes [S, 4]; objects int64 [S], numbers of their true objects or
    BACKGROUND; given [S]: whether a box is a true one that was added."""

    boxes: Tensor
    objects: Tensor
    given: Tensor

    def labels(self, truth: Truth, background: int) -> Tensor:
        """Class of every box, int64 [S]; `background` for those without an object."""
        if not len(truth.labels):
            return torch.full_like(self.objects, background)
        return torch.where(self.objects == BACKGROUND, background, truth.labels[self.objects.clamp(min=0)])


def decode(deltas: Tensor, boxes: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """Boxes [N, ..., 4] that deltas [N, ..., 4] make of boxes [N, 4].

    Args:
        deltas: Of centre (in widths and heights) and of the logarithms of width and height, divided by `stds`.
        boxes: To start from.
        stds: What the deltas are multiplied by.
    """
    step = deltas * deltas.new_tensor(stds)
    boxes = boxes.to(step.dtype).reshape(len(boxes), *[1] * (deltas.ndim - 2), 4)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size + step[..., :2] * size
    half = 0.5 * size * step[..., 2:].clamp(-LARGEST_STEP, LARGEST_STEP).exp()
    return torch.cat([centre - half, centre + half], -1)


def encode(boxes: Tensor, wanted: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """Deltas [N, 4] that make boxes [N, 4], none of them without area, into wanted ones [N, 4]: the inverse of `decode`.

    Args:
        boxes: To start from.
        wanted: To arrive at.
        stds: The deltas are divided by them.
    """
    size, target = boxes[:, 2:] - boxes[:, :2], wanted[:, 2:] - wanted[:, :2]
    moved = (wanted[:, :2] + 0.5 * target - boxes[:, :2] - 0.5 * size) / size
    return torch.cat([moved, (target / size).log()], 1) / boxes.new_tensor(stds)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """boxes [N, ..., 4] cut to an image of `size` (height, width)."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def assign(boxes: Tensor, truth: Tensor, iou: float) -> Tensor:
    """For each box the number of the object that it overlaps most, or BACKGROUND where that overlap is small: int64 [N].

    Args:
        boxes: Proposals [N, 4].
        truth: True boxes [G, 4].
        iou: Overlap from which on a box has an object.
    """
    if not len(truth) or not len(boxes):
        return torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
    found: Tensor = Matcher(iou, iou)(box_iou(truth, boxes))
    return found


def sample(boxes: Tensor, truth: Tensor, iou: float, count: int, fraction: float) -> Sampled:
    """Boxes for a stage of the cascade, the true ones added: at most `count`, at most `share` of them with an object.

    Args:
        boxes: Proposals [N, 4].
        truth: True boxes [G, 4].
        iou: From which on a box has an object.
        count: Of boxes.
        fraction: Largest share of boxes with an object; what these leave is filled with background.
    """
    whole = torch.cat([truth.to(boxes.dtype), boxes])
    numbers = torch.arange(len(truth), device=boxes.device)
    objects = torch.cat([numbers, assign(boxes, truth, iou)])
    positive, negative = BalancedPositiveNegativeSampler(count, fraction)([(objects >= 0).long()])
    chosen = torch.cat([torch.where(mask[0])[0] for mask in (positive, negative)])
    return Sampled(whole[chosen], objects[chosen], chosen < len(truth))


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [S, C + 1] to labels [S]."""
    return F.cross_entropy(logits.float(), labels)


def box_loss(predicted: Tensor, wanted: Tensor, sampled: int) -> Tensor:
    """GIOU_WEIGHT times the sum of 1 - GIoU over boxes with an object, over the number of all sampled boxes.

    Args:
        predicted: Boxes [P, 4].
        wanted: True boxes [P, 4].
        sampled: Number of sampled boxes, those without an object included.
    """
    return GIOU_WEIGHT * generalized_box_iou_loss(predicted.float(), wanted.float(), reduction="sum") / max(sampled, 1)


def delta_loss(deltas: Tensor, wanted: Tensor, sampled: int) -> Tensor:
    """torchvision's loss of boxes with an object: smooth L1 of deltas, over the number of all sampled boxes.

    Args:
        deltas: Predicted, [P, 4].
        wanted: True ones, [P, 4].
        sampled: Number of sampled boxes, those without an object included.
    """
    return F.smooth_l1_loss(deltas.float(), wanted.float(), beta=1 / 9, reduction="sum") / max(sampled, 1)


def mask_targets(masks: Tensor, objects: Tensor, boxes: Tensor, cells: int) -> Tensor:
    """What the mask head has to give in boxes [P, 4]: 0 or 1, float32 [P, side, side].

    Args:
        masks: Of the image's objects, bool [G, H, W].
        objects: Number of each box's object, int64 [P].
        boxes: In pixels of the masks.
        cells: In pixels.
    """
    rois = torch.cat([objects[:, None].to(boxes.dtype), boxes], 1).float()
    shares = roi_align(masks[:, None].float(), rois, cells, 1.0, 0, True)[:, 0]
    return (shares >= 0.5).float()


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits to targets [P, M, M]; 0 without boxes."""
    if not len(logits):
        return logits.float().sum()
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)


def pool(maps: list[Tensor], strides: tuple[int, ...], rois: Tensor, cells: int) -> Tensor:
    """RoIAlign [N, D, side, side] of each box on the level of the pyramid that suits its size.

    Args:
        maps: Levels [B, D, h, w], finest first.
        strides: Pixels a place of each level.
        rois: Number of the image in the batch, and box: [N, 5].
        cells: Of what is cut out, in places.

    A box of 56 pixels a side or less is cut out of the finest level here, one of twice that of the next.
    """
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    levels = (area.clamp(min=0).sqrt() / 56 + 1e-6).log2().floor().clamp(0, len(maps) - 1)
    parts, order = [], []
    for number, (level, stride) in enumerate(zip(maps, strides, strict=True)):
        chosen = torch.where(levels == number)[0]
        parts.append(roi_align(level.float(), rois[chosen].float(), cells, 1.0 / stride, 0, True))
        order.append(chosen)
    return torch.cat(parts)[torch.cat(order).argsort()]
