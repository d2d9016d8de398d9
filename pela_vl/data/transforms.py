"""Images to normalised tensors: the training augmentation of ALBEF and the plain resize of evaluation.

Every random number comes from the generator that is passed in, so a sample is a function of its seed alone.
H, W: height and width, both the image size S.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from pela_vl.data.augment import random_augment
from pela_vl.data.normalization import CLIP, Normalization

RATIO = (3 / 4, 4 / 3)

# (image, NumPy generator or None where nothing is drawn) -> (float32 [3, H, W], whether it was flipped)
Transform = Callable[[Image.Image, Any], tuple[torch.Tensor, bool]]


def require_transform(transform: Transform | None) -> Transform:
    """Return a data set's transform. Raises ValueError if it is not set yet; it is set once the model is known."""
    if transform is None:
        raise ValueError("this data set has no transform yet: set its attribute `transform` first")
    return transform


def least_side(transform: Transform | None) -> int:
    """Pixels that both sides of an image need for a transform, so that a larger JPEG may be decoded smaller; 0: all that it has.

    Only `TrainTransform` says less than all: evaluation reads images as they are.
    """
    return transform.least_side if isinstance(transform, TrainTransform) else 0


def train_transform(
    image_size: int,
    min_scale: float = 0.5,
    hflip: float = 0.5,
    augment: bool = True,
    normalization: Normalization | None = CLIP,
) -> "TrainTransform":
    """Random resized crop, horizontal flip and random augmentation; see `TrainTransform`.

    Args:
        image_size: width and height of the result in pixels.
        min_scale: smallest fraction of the area that a crop keeps, in (0, 1].
        hflip: probability of a horizontal flip.
        augment: apply `random_augment` too.
        normalization: of the channels; None leaves 8-bit pixels, a quarter of the bytes, for `normalize` on the device.

    Raises:
        ValueError: If an argument is out of range.
    """
    return TrainTransform(image_size, min_scale, hflip, augment, normalization)


def eval_transform(image_size: int, normalization: Normalization = CLIP) -> "EvalTransform":
    """Plain bicubic resize of the whole image to a square; see `EvalTransform`."""
    return EvalTransform(image_size, normalization)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop (bicubic), horizontal flip, then two random augmentations.

    Attributes:
        image_size: width and height of the result in pixels.
        min_scale: smallest fraction of the area that a crop keeps; 1 keeps the whole image, whatever its shape.
        hflip: probability of a flip.
        augment: whether to apply `random_augment`.
        normalization: of the channels; None leaves 8-bit pixels.
    """

    image_size: int
    min_scale: float
    hflip: float
    augment: bool
    normalization: Normalization | None = CLIP

    def __post_init__(self) -> None:
        _check_size(self.image_size)
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale must lie in (0, 1], not {self.min_scale}")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip is a probability, not {self.hflip}")

    @property
    def least_side(self) -> int:
        """Sides of an image whose smallest square crop is twice as wide as the result, as Pillow's `thumbnail` has it: what is
        resized from there is close to what is resized from the whole."""
        return math.ceil(2 * self.image_size / math.sqrt(self.min_scale))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[torch.Tensor, bool]:
        """Return float32 [3, H, W] (uint8 without normalization) and whether the image was flipped, in which case left and
        right must be swapped in its text.
        """
        if self.min_scale < 1:
            image = image.crop(crop_box(*image.size, self.min_scale, rng))
        image = resize(image, self.image_size)
        flipped = bool(rng.random() < self.hflip)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment:
            image = random_augment(image, rng)
        return to_pixels(image) if self.normalization is None else to_tensor(image, self.normalization), flipped


@dataclass(frozen=True)
class EvalTransform:
    """Bicubic resize of the whole image to `image_size` x `image_size` pixels."""

    image_size: int
    normalization: Normalization = CLIP

    def __post_init__(self) -> None:
        _check_size(self.image_size)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> tuple[torch.Tensor, bool]:
        """Return float32 [3, H, W] and False. `rng` is unused; training transforms need it."""
        return to_tensor(resize(image, self.image_size), self.normalization), False


def crop_box(width: int, height: int, min_scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a crop with a log-uniform aspect ratio in `RATIO`.

    Ten draws are tried. When none fits, the largest central crop whose ratio lies in `RATIO` is taken.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        min_scale: smallest fraction of the area; the largest is 1.
        rng: where the draws come from.

    Returns:
        (left, top, right, bottom) in pixels.
    """
    area, (low, high) = width * height, RATIO
    for _ in range(10):
        target = area * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * high)))
    h = min(height, max(1, round(width / low)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resize(image: Image.Image, size: int) -> Image.Image:
    """Bicubic resize to a square; an image that has the size already is returned as it is."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """8-bit RGB to uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def normalize(pixels: torch.Tensor, normalization: Normalization = CLIP) -> torch.Tensor:
    """uint8 pixels [..., 3, H, W] to float32, divided by 255 and normalised, where they are."""
    mean, std = _statistics(normalization, pixels.device)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def to_tensor(image: Image.Image, normalization: Normalization = CLIP) -> torch.Tensor:
    """8-bit RGB to float32 [3, H, W], divided by 255 and normalised."""
    return normalize(to_pixels(image), normalization)


def to_image(tensor: torch.Tensor, normalization: Normalization = CLIP) -> Image.Image:
    """Undo `to_tensor`: float [3, H, W] to 8-bit RGB, to show what the model sees."""
    mean, std = _statistics(normalization, torch.device("cpu"))
    pixels = tensor.detach().float().cpu() * std + mean
    return Image.fromarray((pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


@lru_cache
def _statistics(normalization: Normalization, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std [3, 1, 1]."""
    mean, std = (torch.tensor(values, device=device) for values in (normalization.mean, normalization.std))
    return mean.view(3, 1, 1), std.view(3, 1, 1)


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, not {image_size}")
