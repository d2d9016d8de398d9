"""From a model's coarse logits to a class for every pixel of the original image, without a whole map of all classes in memory.

mmseg resizes all K classes' logits to the size that the model saw, then to the original size, and takes the highest. A
resize treats every class alike and apart from the others, so a few classes at a time give the same result: each pixel keeps
the highest logit so far and its class. Shapes: B images, K classes, h x w places, H x W pixels that the model saw, H' x W'
pixels of the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A part of the images and the model's logits of it. logits [B, K, h, w]; the part is rows top .. top + height of what the
    model saw, and columns likewise."""

    logits: Tensor
    top: int
    left: int
    height: int
    width: int


def predict_whole(model: Any, images: Tensor) -> list[Window]:
    """One window: the model on whole images [B, 3, H, W], of which it gives `logits`."""
    return [Window(model(images).logits, 0, 0, images.shape[2], images.shape[3])]


def predict_windows(model: Any, images: Tensor, size: int, stride: int, batch: int = 1) -> list[Window]:
    """The model on overlapping windows, as mmseg lays them: the last row and column end where the image ends.

    Args:
        model: Gives `logits` of images.
        images: [B, 3, H, W].
        size: Pixels a side of a window.
        stride: Pixels between windows.
        batch: Windows that are shown at a time.
    """
    height, width = min(size, images.shape[2]), min(size, images.shape[3])
    places = [
        (top, left) for top in _starts(images.shape[2], size, stride) for left in _starts(images.shape[3], size, stride)
    ]
    together = max(batch // len(images), 1)
    found = []
    for start in range(0, len(places), together):
        chosen = places[start : start + together]
        parts = [images[:, :, top : top + height, left : left + width] for top, left in chosen]
        logits = model(torch.cat(parts)).logits
        pairs = zip(chosen, logits.split(len(images)), strict=True)
        found += [Window(part, top, left, height, width) for (top, left), part in pairs]
    return found


def label_pixels(
    windows: Sequence[Window], seen: tuple[int, int], original: tuple[int, int], tile_mb: float = 64.0
) -> Tensor:
    """The class of the highest logit for every pixel of the originals, int64 [B, H', W'].

    Where windows overlap their logits are averaged. Of equal logits the class with the lower number is taken.

    Args:
        windows: They cover the images.
        seen: H, W.
        original: H', W'.
        tile_mb: MiB that the logits of the classes under way may take at the larger of the two sizes.
    """
    batch, classes = windows[0].logits.shape[:2]
    pixels = max(seen[0] * seen[1], original[0] * original[1])
    step = max(int(tile_mb * 2**20 / (4 * batch * pixels)), 1)
    highest: Tensor | None = None
    for first in range(0, classes, step):
        logits = _resize(_merged(windows, slice(first, first + step), seen), original)
        top, number = logits.max(1)
        number += first
        if highest is None:
            highest, found = top, number
        else:
            higher = top > highest
            found = torch.where(higher, number, found)
            highest = torch.where(higher, top, highest)
    return found


def _merged(windows: Sequence[Window], classes: slice, size: tuple[int, int]) -> Tensor:
    """Logits of some classes at the size that the model saw, [B, k, H, W]."""
    parts = [_resize(window.logits[:, classes].float(), (window.height, window.width)) for window in windows]
    if len(windows) == 1:
        return parts[0]
    total, count = parts[0].new_zeros(*parts[0].shape[:2], *size), parts[0].new_zeros(size)
    for window, part in zip(windows, parts, strict=True):
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        total[:, :, rows, columns] += part
        count[rows, columns] += 1
    return total / count


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along a side."""
    count = max(length - size + stride - 1, 0) // stride + 1
    return [max(min(place * stride + size, length) - size, 0) for place in range(count)]
