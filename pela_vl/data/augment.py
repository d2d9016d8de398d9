"""Random augmentation in the manner of RandAugment (Cubuk et al. 2020) with ALBEF's choice of operations.

Two operations are drawn with replacement, each applied with probability one half, at magnitude 7 of 10. Only operations
that leave a caption true are among them: no inversion, posterisation, solarisation or change of hue.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

COUNT = 2
MAGNITUDE = 7
PROBABILITY = 0.5
_LEVEL = MAGNITUDE / 10
_FILL = (128, 128, 128)
_ENHANCE = 0.1 + 1.8 * _LEVEL  # factor; 1 leaves the image as it is
_SHEAR = 0.3 * _LEVEL  # horizontal shift per vertical pixel, or the reverse
_TRANSLATE = 10 * _LEVEL  # pixels, whatever the size, as published
_ROTATE = 30 * _LEVEL  # degrees

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR, fillcolor=_FILL
    )


def _shear_x(image: Image.Image, sign: float) -> Image.Image:
    return _affine(image, 1, sign * _SHEAR, 0, 0, 1, 0)


def _shear_y(image: Image.Image, sign: float) -> Image.Image:
    return _affine(image, 1, 0, 0, sign * _SHEAR, 1, 0)


def _translate_x(image: Image.Image, sign: float) -> Image.Image:
    return _affine(image, 1, 0, sign * _TRANSLATE, 0, 1, 0)


def _translate_y(image: Image.Image, sign: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, sign * _TRANSLATE)


def _rotate(image: Image.Image, sign: float) -> Image.Image:
    return image.rotate(sign * _ROTATE, resample=Image.Resampling.BILINEAR, fillcolor=_FILL)


# Each takes the image and a sign, +1 or -1, which those without a direction ignore.
OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, sign: image,
    "AutoContrast": lambda image, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, sign: ImageOps.equalize(image),
    "Brightness": lambda image, sign: ImageEnhance.Brightness(image).enhance(_ENHANCE),
    "Sharpness": lambda image, sign: ImageEnhance.Sharpness(image).enhance(_ENHANCE),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
}
_NAMES = tuple(OPERATIONS)


def random_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image after `COUNT` random operations; the given image is left as it is."""
    chosen = rng.integers(len(_NAMES), size=COUNT)
    applied = rng.random(COUNT) < PROBABILITY
    signs = np.where(rng.random(COUNT) < 0.5, -1.0, 1.0)
    for index, apply, sign in zip(chosen, applied, signs, strict=True):
        if apply:
            image = OPERATIONS[_NAMES[index]](image, float(sign))
    return image
