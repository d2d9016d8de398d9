"""The heads of a Cascade Mask R-CNN: classes and boxes, and masks, of what was cut out of the pyramid.

Shapes: K boxes, D channels of the pyramid, C classes.
"""

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from pela_vl.models.vision.sync_norm import SyncBatchNorm2d

BOX_SIDE, MASK_SIDE = 7, 14
"""Places a side that boxes and masks are made of; a mask has twice as many pixels."""


class BoxHead(nn.Module):
    """Convolutions with batch normalisation, one fully connected layer, then class logits and deltas of each class.

    The last logit is the background's. torchvision's predictor has it first and deltas for it too.

    Args:
        channels: D.
        convs: Number of convolutions.
        width: Of the fully connected layer.
        classes: C.
    """

    def __init__(self, channels: int, convs: int, width: int, classes: int) -> None:
        super().__init__()
        shape = (channels, BOX_SIDE, BOX_SIDE)
        self.shared = FastRCNNConvFCHead(shape, [channels] * convs, [width], SyncBatchNorm2d)
        self.logits = nn.Linear(width, classes + 1)
        self.deltas = nn.Linear(width, 4 * classes)
        for layer, std in ((self.logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [K, D, 7, 7] to logits [K, C + 1] and deltas [K, C, 4], fp32."""
        shared = self.shared(x)
        return self.logits(shared).float(), self.deltas(shared).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Convolutions, an upsampling by two, and a mask of logits for every class.

    Args:
        channels: D.
        convs: Number of convolutions.
        classes: C.
    """

    def __init__(self, channels: int, convs: int, classes: int) -> None:
        super().__init__()
        self.convs = MaskRCNNHeads(channels, (channels,) * convs, 1)
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.logits = nn.Conv2d(channels, classes, 1)
        for layer in (self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """x [K, D, 14, 14] and classes [K] to the logits of that class' mask, fp32 [K, 28, 28]."""
        logits = self.logits(torch.relu(self.upsample(self.convs(x)))).float()
        return logits[torch.arange(len(labels), device=labels.device), labels]


def level_strides(first: int, count: int) -> tuple[int, ...]:
    """Pixels a place of `count` levels, each twice the one before."""
    return tuple(first * 2**number for number in range(count))
