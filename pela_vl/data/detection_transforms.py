"""Training and test images of a detector: flips, scales and crops that boxes and masks follow, as the published recipes have them.

Shapes: H x W an image, n objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pela_vl.data.normalization import IMAGENET, Normalization

MULTIPLE = 32
"""Images are padded to multiples of so many pixels: the stride of the backbone's last stage."""
CROP_SHORT, CROP_RANGE = (400, 500, 600), (384, 600)
"""Of the longer published recipe: shorter sides before the crop, and the least and largest side of the crop."""


@dataclass(frozen=True)
class Shown:
    """An image with its objects: pixels uint8 [3, H, W], boxes float32 [n, 4], classes int64 [n], masks uint8 [n, H, W] or None."""

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]


def scaled_size(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Height and width of an image of `size` enlarged or shrunk in proportion, as far as both limits allow.

    Args:
        size: Height and width.
        short: Longest that the shorter side may be.
        long: Longest that the longer side may be.
    """
    factor = min(long / max(size), short / min(size))
    return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)


def resize_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W] to another size, bilinear and not antialiased: what OpenCV does, and so the published recipes."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    resized = F.interpolate(pixels[None].float(), size, mode="bilinear", align_corners=False)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def resize(shown: Shown, size: tuple[int, int]) -> Shown:
    """To `size` (height, width); of a mask the nearest pixel."""
    height, width = shown.size
    factors = torch.tensor([size[1] / width, size[0] / height] * 2)
    masks = shown.masks
    if masks is not None:
        rows, columns = (torch.arange(n) * old // n for n, old in zip(size, shown.size, strict=True))
        masks = masks[:, rows][:, :, columns]
    return _within(resize_pixels(shown.pixels, size), shown.boxes * factors, shown.labels, masks)


def flip(shown: Shown) -> Shown:
    """Left and right exchanged."""
    width, boxes = shown.size[1], shown.boxes.clone()
    boxes[:, 0], boxes[:, 2] = width - shown.boxes[:, 2], width - shown.boxes[:, 0]
    masks = None if shown.masks is None else shown.masks.flip(2)
    return Shown(shown.pixels.flip(2), boxes, shown.labels, masks)


def crop(shown: Shown, top: int, left: int, size: tuple[int, int]) -> Shown:
    """A rectangle; objects outside it are left out, which may be all.

    Args:
        shown: The image.
        top: First row.
        left: First column.
        size: Height and width.
    """
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    masks = None if shown.masks is None else shown.masks[:, rows, columns]
    boxes = shown.boxes - torch.tensor([left, top, left, top], dtype=torch.float32)
    return _within(shown.pixels[:, rows, columns], boxes, shown.labels, masks)


def _within(pixels: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor | None) -> Shown:
    """Boxes cut to the image, and objects left out of which nothing is left.

    Args:
        pixels: The image.
        boxes: In its pixels.
        labels: Classes.
        masks: Or None.
    """
    height, width = pixels.shape[1:]
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2, dtype=torch.float32))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Shown(pixels, boxes[kept], labels[kept], None if masks is None else masks[kept])


def normalise(pixels: Tensor, normalization: Normalization) -> Tensor:
    """uint8 [3, H, W] to float32."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (normalization.mean, normalization.std))
    return (pixels.float() / 255 - mean) / std


def pad(image: Tensor, height: int, width: int) -> Tensor:
    """An image or masks with zeros on the right and below.

    Args:
        image: Its last two axes are padded.
        height: To arrive at.
        width: To arrive at.
    """
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def padded(length: int) -> int:
    """The next multiple of MULTIPLE."""
    return -(-length // MULTIPLE) * MULTIPLE


def to_pixels(image: Image.Image) -> Tensor:
    """uint8 [3, H, W]"""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class DetectionTransform:
    """The published training transform. Every draw comes from the generator that is passed in.

    Args:
        short: Shorter sides, one of which is drawn.
        long: Limit of the longer side.
        hflip: Probability of a flip.
        crop: Half of the images are first scaled to one of CROP_SHORT and cropped, as the longer recipe (3x) does.
        normalization: Of the model.
    """

    short: Sequence[int]
    long: int
    hflip: float = 0.5
    crop: bool = False
    normalization: Normalization = IMAGENET

    def __call__(self, shown: Shown, rng: np.random.Generator) -> tuple[Tensor, Shown]:
        """The image, float32 [3, H, W], and what is shown in it."""
        if rng.random() < self.hflip:
            shown = flip(shown)
        if self.crop and rng.random() < 0.5:
            shown = resize(shown, scaled_size(shown.size, int(rng.choice(CROP_SHORT)), self.long))
            low, high = CROP_RANGE
            height, width = (int(rng.integers(min(length, low), min(length, high) + 1)) for length in shown.size)
            top, left = (
                int(rng.integers(whole - part + 1)) for whole, part in zip(shown.size, (height, width), strict=True)
            )
            shown = crop(shown, top, left, (height, width))
        shown = resize(shown, scaled_size(shown.size, int(rng.choice(self.short)), self.long))
        return normalise(shown.pixels, self.normalization), shown


@dataclass(frozen=True)
class FixedTransform:
    """Scale in proportion and pad. short, long: see `scaled_size`."""

    short: int
    long: int
    normalization: Normalization = IMAGENET

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Of an image of height x width as the model sees it, without padding."""
        return scaled_size((height, width), self.short, self.long)

    def __call__(self, image: Image.Image) -> Tensor:
        """float32 [3, H, W], padded to multiples of MULTIPLE."""
        height, width = size = self.size(image.height, image.width)
        shown = normalise(resize_pixels(to_pixels(image), size), self.normalization)
        return pad(shown, padded(height), padded(width))
