"""ImageNet's augmentation and evaluation crop. H, W: the image size S.

timm draws from Python's, numpy's and torch's global generators. Here these are seeded from the given generator and
restored afterwards, so that a view is a function of its sample's seed.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize
from torchvision import transforms

from pela_vl.data.normalization import IMAGENET, Normalization

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


@contextmanager
def seeded(seeds: tuple[int, int, int]) -> Iterator[None]:
    """Seed Python's, numpy's and torch's CPU generators in the block, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.default_generator.manual_seed(seeds[2])  # torch.manual_seed would seed every device as well
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def draw_seeds(rng: np.random.Generator) -> tuple[int, int, int]:
    """Seeds for `seeded`."""
    first, second, third = (int(seed) for seed in rng.integers(2**32, size=3))
    return first, second, third


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's operation, which asks for 0 bits at the highest magnitude. Older Pillows made a black image of that; newer
    ones raise.
    """
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)


@dataclass(frozen=True)
class AugmentTransform:
    """timm's training transform: random resized crop (bicubic), flip, RandAugment, normalisation, random erasing.

    Attributes:
        image_size: S in pixels.
        min_scale: smallest fraction of the area that a crop keeps.
        hflip: probability of a flip.
        rand_augment: timm's name of the policy; empty: none.
        erasing: probability of erasing a rectangle, which is filled with noise pixel by pixel.
        normalization: the model's.

    Raises ValueError for a policy that timm does not know.
    """

    image_size: int
    min_scale: float = 0.08
    hflip: float = 0.5
    rand_augment: str = RAND_AUGMENT
    erasing: float = 0.25
    normalization: Normalization = IMAGENET
    _transform: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            transform = create_transform(
                self.image_size,
                is_training=True,
                scale=(self.min_scale, 1.0),
                hflip=self.hflip,
                color_jitter=None,  # type: ignore[arg-type]  # timm's own default for none
                auto_augment=self.rand_augment or None,
                interpolation="bicubic",
                re_prob=self.erasing,
                re_mode="pixel",
                mean=self.normalization.mean,
                std=self.normalization.std,
            )
        except (AssertionError, ValueError) as error:  # how timm reads a policy
            reason = f" ({error})" if str(error) else ""
            raise ValueError(
                f"rand_augment {self.rand_augment!r}: is no policy of timm{reason}; give one like {RAND_AUGMENT}"
            ) from None
        for part in transform.transforms:
            for operation in getattr(part, "ops", ()):
                if operation.aug_fn is posterize:
                    operation.aug_fn = _posterize
        object.__setattr__(self, "_transform", transform)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[torch.Tensor, bool]:
        """Return float32 [3, H, W], and False: no text depends on a flip."""
        with seeded(draw_seeds(rng)):
            return self._transform(image), False


@dataclass(frozen=True)
class CentreTransform:
    """Bicubic resize of the shorter side to `resize` pixels, then the central square of `image_size` pixels, normalised."""

    image_size: int
    resize: int
    normalization: Normalization = IMAGENET
    _transform: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.resize:
            raise ValueError(f"image_size {self.image_size} must be from 1 to resize, {self.resize}")
        steps = [
            transforms.Resize(self.resize, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(self.image_size),
            transforms.ToTensor(),
            transforms.Normalize(self.normalization.mean, self.normalization.std),
        ]
        object.__setattr__(self, "_transform", transforms.Compose(steps))

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> tuple[torch.Tensor, bool]:
        """Return float32 [3, H, W] and False. `rng` is unused; training transforms need it."""
        return self._transform(image), False
