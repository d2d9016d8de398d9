"""Images with their labels to tensors, as mmseg does it for ADE20K: multi-scale resize, crop, flip, photometric distortion.

Every random number comes from the generator that is passed in. H, W: height and width; S: side of a crop.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pela_vl.data.label_images import IGNORED
from pela_vl.data.normalization import IMAGENET, Normalization
from pela_vl.data.transforms import to_tensor

CROP_TRIES = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18
_HUES = 180  # steps of the circle in which HUE is given


@dataclass(frozen=True)
class CropTransform:
    """The training transform.

    size: S. scale: longest and shortest side of a resized image, both multiplied by a factor drawn from `ratio`; the ratio
    of the sides stays. largest_class: share of a crop's labelled pixels that one class may have; after ten tries any crop is
    taken. hflip: probability of a flip. distortion: whether colours are distorted. normalization: the model's.
    """

    size: int
    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    largest_class: float = 0.75
    hflip: float = 0.5
    distortion: bool = True
    normalization: Normalization = IMAGENET

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.size < 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"size {self.size}, ratio {self.ratio}: want 1 at least and a rising range above 0")
        if not 0 < self.largest_class <= 1 or not 0 <= self.hflip <= 1:
            raise ValueError(f"largest_class {self.largest_class}, hflip {self.hflip}: want shares of 1")

    def __call__(
        self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """RGB image and uint8 [H, W] -> float32 [3, S, S] and uint8 [S, S], padded with 0 and `IGNORED`."""
        factor = rng.uniform(*self.ratio)
        height, width = fitted(labels.shape, (int(self.scale[0] * factor), int(self.scale[1] * factor)))
        rows, columns = self._crop(labels, height, width, rng)
        pixels = bilinear(np.asarray(image), height, width, rows, columns)
        found = nearest(labels, height, width, rows, columns)
        if rng.random() < self.hflip:
            pixels, found = pixels[:, ::-1], found[:, ::-1]
        if self.distortion:
            pixels = distort(pixels, rng)
        tensor = torch.zeros(3, self.size, self.size)
        tensor[:, : found.shape[0], : found.shape[1]] = to_tensor(Image.fromarray(pixels), self.normalization)
        target = torch.full((self.size, self.size), IGNORED, dtype=torch.uint8)
        target[: found.shape[0], : found.shape[1]] = torch.from_numpy(found.copy())
        return tensor, target

    def _crop(self, labels: np.ndarray, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
        """Rows and columns of the resized image; of one that is smaller than the crop all."""
        for _ in range(CROP_TRIES + 1):
            top = int(rng.integers(0, max(height - self.size, 0) + 1))
            left = int(rng.integers(0, max(width - self.size, 0) + 1))
            rows = slice(top, min(top + self.size, height))
            columns = slice(left, min(left + self.size, width))
            if self.largest_class == 1:
                break
            counts = np.bincount(nearest(labels, height, width, rows, columns).ravel(), minlength=256)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() < self.largest_class * counts.sum():
                break
        return rows, columns


@dataclass(frozen=True)
class WholeTransform:
    """The transform of test images: resized to fit `scale` (longest and shortest side), keeping the ratio of the sides."""

    scale: tuple[int, int] = (2048, 512)
    normalization: Normalization = IMAGENET

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> float32 [3, H', W']."""
        height, width = fitted((image.height, image.width), self.scale)
        pixels = bilinear(np.asarray(image), height, width, slice(0, height), slice(0, width))
        return to_tensor(Image.fromarray(pixels), self.normalization)


@dataclass(frozen=True)
class MiddleTransform:
    """The square in the middle of an image resized to fit `scale`, not augmented; for samples that a compression looks at."""

    size: int
    scale: tuple[int, int] = (2048, 512)
    normalization: Normalization = IMAGENET

    def __call__(
        self, image: Image.Image, labels: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of `CropTransform`; nothing is drawn."""
        whole = WholeTransform(self.scale, self.normalization)(image)
        height, width = whole.shape[1:]
        top, left = max(height - self.size, 0) // 2, max(width - self.size, 0) // 2
        rows, columns = slice(top, min(top + self.size, height)), slice(left, min(left + self.size, width))
        found = torch.zeros(3, self.size, self.size)
        part = whole[:, rows, columns]
        found[:, : part.shape[1], : part.shape[2]] = part
        target = torch.full((self.size, self.size), IGNORED, dtype=torch.uint8)
        target[: part.shape[1], : part.shape[2]] = torch.from_numpy(nearest(labels, height, width, rows, columns))
        return found, target


def check_scale(scale: tuple[int, int]) -> None:
    """Raises ValueError unless `scale` is a longest and a shortest side."""
    if len(scale) != 2 or not 1 <= scale[1] <= scale[0]:
        raise ValueError(f"scale {list(scale)}: want the longest and the shortest side in pixels")


def fitted(size: tuple[int, ...], scale: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image of `size` (height, width), made as large as fits into `scale` with the ratio kept."""
    height, width = size
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def bilinear(pixels: np.ndarray, height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    """A part of an image resized bilinearly without antialiasing, as OpenCV and torch do; no other part is computed.

    Args:
        pixels: uint8 [h, w, 3].
        height: Of the whole resized image.
        width: Likewise.
        rows: Of it.
        columns: Of it.

    Returns:
        uint8 [rows, columns, 3].
    """
    low, high, weight = _places(pixels.shape[0], height, rows)
    left, right, part = _places(pixels.shape[1], width, columns)
    start = low[0]
    wanted = pixels[start : high[-1] + 1].astype(np.float32)  # of the rows that are read
    across = wanted[:, left] * (1 - part)[None, :, None] + wanted[:, right] * part[None, :, None]
    weight = weight[:, None, None]
    return (across[low - start] * (1 - weight) + across[high - start] * weight + 0.5).astype(np.uint8)


def nearest(labels: np.ndarray, height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    """A part of a label image resized by OpenCV's nearest rule.

    Args:
        labels: uint8 [h, w].
        height: Of the whole resized image.
        width: Likewise.
        rows: Of it.
        columns: Of it.

    Returns:
        uint8 [rows, columns].
    """
    down = np.arange(rows.start, rows.stop) * labels.shape[0] // height
    right = np.arange(columns.start, columns.stop) * labels.shape[1] // width
    return labels[down[:, None], right[None, :]]


def distort(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation, hue, each with probability 1/2, contrast second or last; uint8 [h, w, 3] likewise."""
    if rng.random() < 0.5:
        pixels = _scaled(pixels, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_last = rng.random() < 0.5
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else None
    if contrast is not None and not contrast_last:
        pixels = _scaled(pixels, contrast, 0.0)
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else None
    hue = int(rng.integers(-HUE, HUE)) if rng.random() < 0.5 else 0
    if saturation is not None or hue:
        parts = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
        if saturation is not None:
            parts[:, :, 1] = _scaled(parts[:, :, 1], saturation, 0.0)
        parts[:, :, 0] += np.uint8(round(hue * 256 / _HUES) % 256)  # a circle: the sum wraps
        pixels = np.array(Image.fromarray(parts, "HSV").convert("RGB"))
    if contrast is not None and contrast_last:
        pixels = _scaled(pixels, contrast, 0.0)
    return np.ascontiguousarray(pixels)


def _places(given: int, size: int, wanted: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For places of a resized line: the two places of the given line that are mixed, and the share of the second."""
    at = np.maximum((np.arange(wanted.start, wanted.stop) + 0.5) * (given / size) - 0.5, 0)
    low = np.minimum(at.astype(np.intp), given - 1)
    return low, np.minimum(low + 1, given - 1), (at - low).astype(np.float32)


def _scaled(pixels: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """pixels * factor + shift, cut to 0..255 and rounded down."""
    return np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8)[pixels]
