"""Mixup (Zhang et al. 2018), CutMix (Yun et al. 2019) and their soft labels.

Sample i of a batch is mixed with sample B - 1 - i, with one draw per batch, as in timm's default mode. Drawing and
mixing are separate functions, so that one draw can be applied to teacher and student, or displayed. Shapes: B samples,
C classes, H x W pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """One draw.

    Attributes:
        weight: of the sample itself in its label; its partner has 1 - weight.
        box: (top, bottom, left, right) of what is cut from the partner; None where all pixels are blended.
    """

    weight: float = 1.0
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed.

    Attributes:
        classes: C.
        mixup: parameter of Mixup's Beta distribution; 0: no Mixup.
        cutmix: parameter of CutMix's Beta distribution; 0: no CutMix.
        probability: of mixing a batch at all.
        switch: probability of CutMix where both are on.
        smoothing: of the labels.
    """

    classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.classes < 1 or self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"classes {self.classes}, mixup {self.mixup}, cutmix {self.cutmix}: none may be negative")
        for name in ("probability", "switch", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")

    def draw(self, rng: np.random.RandomState, height: int, width: int) -> Mix:
        """Draw the mix of one batch.

        Args:
            rng: the generator; seeded alike, timm's `Mixup` draws the same.
            height: of the images, in pixels.
            width: of the images, in pixels.
        """
        if not (self.mixup or self.cutmix) or rng.random_sample() >= self.probability:
            return Mix()
        cut = not self.mixup or (bool(self.cutmix) and rng.random_sample() < self.switch)
        alpha = self.cutmix if cut else self.mixup
        weight = float(rng.beta(alpha, alpha))
        if not cut or weight == 1.0:
            return Mix(weight)
        scale = np.sqrt(1 - weight)
        cut_height, cut_width = int(height * scale), int(width * scale)
        y, x = int(rng.randint(0, height)), int(rng.randint(0, width))
        top, bottom = max(y - cut_height // 2, 0), min(y + (cut_height + 1) // 2, height)
        left, right = max(x - cut_width // 2, 0), min(x + (cut_width + 1) // 2, width)
        # the box may cross the border: the label uses the area that was really cut
        return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))

    def labels(self, targets: Tensor, mix: Mix) -> Tensor:
        """Soft labels [B, C] of targets int64 [B]: each row sums to 1."""
        off = self.smoothing / self.classes
        smooth = torch.full((len(targets), self.classes), off).scatter_(1, targets[:, None], 1 - self.smoothing + off)
        return smooth * mix.weight + smooth.flip(0) * (1 - mix.weight)


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Mix images [B, 3, H, W] in place, and return them."""
    if mix.box is not None:
        top, bottom, left, right = mix.box
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    elif mix.weight != 1.0:
        partner = images.flip(0).mul_(1 - mix.weight)
        images.mul_(mix.weight).add_(partner)
    return images


def mixing_generator(seed: int, stream: int, keys: list[tuple[int, int]]) -> np.random.RandomState:
    """The random generator of one batch.

    Args:
        seed: of the run.
        stream: a constant that separates these draws from others with the same seed.
        keys: (epoch, index) of the batch's samples.
    """
    words = np.random.SeedSequence([seed, stream, *(number for key in keys for number in key)]).generate_state(8)
    return np.random.RandomState(words)
