"""The region proposal network: torchvision's, with the published anchors and the published rule which of them learn.

Shapes: B images, h x w places of a level, A anchors a place, N anchors of all levels.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou

FOUND, MISSED = 0.7, 0.3
"""Overlap from which on an anchor has an object, and below which it has none; between them it does not learn."""
_CPU = torch.device("cpu")
_ANY_OBJECT, _NO_OBJECT, _UNUSED = 1.0, 0.0, -1.0  # the labels that torchvision's sampler reads


class Anchors(AnchorGenerator):
    """Anchors of `scale` strides a side in each of the ratios (height / width), at multiples of fixed strides.

    torchvision's own are rounded to whole pixels and take a level's stride from its size, which is not whole where a map
    has an odd number of places.

    Args:
        scale: Edge of an anchor in strides.
        ratios: Height over width.
        strides: Pixels a place of each level.
    """

    def __init__(self, scale: float, ratios: tuple[float, ...], strides: tuple[int, ...]) -> None:
        self.strides = strides
        super().__init__(tuple((scale * stride,) for stride in strides), (ratios,) * len(strides))

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device = _CPU,
    ) -> Tensor:
        """Anchors [A, 4] around the origin.

        Args:
            scales: Root of their area, in pixels.
            aspect_ratios: Height over width.
            dtype: Of the result.
            device: Of the result.
        """
        heights = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        width, height = ((sizes * edge[:, None]).flatten() for edge in (1 / heights, heights))
        return torch.stack([-width, -height, width, height], 1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors [N, 4] of every image, which are the same for all."""
        first, sizes = feature_maps[0], [list(level.shape[-2:]) for level in feature_maps]
        self.set_cell_anchors(first.dtype, first.device)
        steps = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(sizes, steps))
        return [anchors for _ in image_list.image_sizes]


class _Head(RPNHead):
    """Gives fp32 also under autocast: boxes are decoded from it."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness [B, A, h, w] and deltas [B, 4 A, h, w] of every level."""
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class Rpn(RegionProposalNetwork):
    """torchvision's network on the published anchors.

    Anchors that reach over the edge of their image do not learn, and an object that no anchor overlaps by FOUND is learned
    by those that overlap it most if that is by MISSED at least.

    Args:
        channels: Of the pyramid.
        scale: Side of an anchor in strides.
        ratios: Height over width.
        strides: Pixels a place of each level.
        before: Boxes of a level before non-maximum suppression, in training and in tests.
        after: Proposals of an image, likewise.
        samples: Anchors of an image that learn, at most half of them with an object.
    """

    def __init__(
        self,
        channels: int,
        scale: float,
        ratios: tuple[float, ...],
        strides: tuple[int, ...],
        before: tuple[int, int],
        after: tuple[int, int],
        samples: int,
    ) -> None:
        super().__init__(
            Anchors(scale, ratios, strides),
            _Head(channels, len(ratios)),
            FOUND,
            MISSED,
            samples,
            0.5,
            {"training": before[0], "testing": before[1]},
            {"training": after[0], "testing": after[1]},
            0.7,
        )

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label [N] (1 object, 0 none, -1 not used) and true box [N, 4] of every anchor of every image.

        targets: "boxes" [G, 4] and "size" (height, width) of each image.
        """
        labels, matched = [], []
        for grid, target in zip(anchors, targets, strict=True):
            found, boxes = label_anchors(grid, target["boxes"], target["size"])
            labels.append(found)
            matched.append(boxes)
        return labels, matched


def label_anchors(anchors: Tensor, truth: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Label [N] and true box [N, 4] of anchors [N, 4]: see `Rpn.assign_targets_to_anchors`.

    Args:
        anchors: In pixels.
        truth: True boxes [G, 4].
        size: Height and width of the image, [2].
    """
    height, width = size
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
    inside = inside | ~inside.any()  # an image smaller than all anchors learns from all of them
    if not len(truth):
        return torch.where(inside, _NO_OBJECT, _UNUSED), anchors
    overlap = torch.where(inside, box_iou(truth, anchors), -1.0)
    best, matched = overlap.max(0)
    labels = torch.where(best < MISSED, _NO_OBJECT, torch.where(best >= FOUND, _ANY_OBJECT, _UNUSED))
    most = overlap.amax(1, keepdim=True)
    rescue = (overlap == most) & (most >= MISSED)
    # of several objects whose best anchor this is the last one counts, as published
    numbers = torch.arange(len(truth), device=anchors.device)[:, None]
    last = torch.where(rescue, numbers, -1).amax(0)
    labels = torch.where(last >= 0, _ANY_OBJECT, labels)
    matched = torch.where(last >= 0, last, matched)
    return torch.where(inside, labels, _UNUSED), truth[matched].to(anchors.dtype)
