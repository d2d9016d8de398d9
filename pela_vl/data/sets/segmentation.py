"""Images with a label image each: lists `[{"image": path, "labels": path}, ...]`.

B samples, H, W: height and width, S side of a crop.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Key, Movable, stack_common
from pela_vl.data.images import ImageReader, at_root, check_there, open_image, read_or_next
from pela_vl.data.label_images import LabelValues, read_label_image
from pela_vl.data.paths import resolve
from pela_vl.data.segmentation_transforms import WholeTransform, fitted
from pela_vl.data.sets.annotations import PathLike, check_image, load_annotations
from pela_vl.data.sizes import check_size

# an image, its classes uint8 [H, W], and a generator -> float32 [3, S, S] and uint8 [S, S]
LabelTransform = Callable[[Image.Image, np.ndarray, Any], tuple[torch.Tensor, torch.Tensor]]
Pair = tuple[str, str]


def load_pairs(files: Sequence[PathLike], image_root: PathLike) -> list[Pair]:
    """(image, label image) of all lists, paths below the root; no image is opened.

    Raises UserError as `load_annotations` does, and for a path that leaves the root.
    """
    found = []
    for entry in load_annotations(files, {"image": (str,), "labels": (str,)}):
        check_image(entry, image_root)
        try:
            resolve(image_root, entry.values["labels"])
        except UserError as error:
            raise UserError(f"{entry.place}: field 'labels': {error}") from error
        found.append((entry.values["image"], entry.values["labels"]))
    return found


class PairReader:
    """Reads an image as it is stored, not turned by its EXIF orientation, with its classes.

    Args:
        root: Where paths start.
        values: Of label images.
        cache_mb: MiB of decoded images to keep in memory.
    """

    def __init__(self, root: PathLike, values: LabelValues, cache_mb: float = 0.0) -> None:
        self.root, self.values = os.fspath(root), values
        self.images = ImageReader(root, cache_mb, stored_pixels=True)

    def __call__(self, pair: Pair) -> tuple[Image.Image, np.ndarray]:
        """RGB image and uint8 [H, W]. Raises `ImageError` for what cannot be read or does not fit together."""
        image = self.images(pair[0])
        path = resolve(self.root, pair[1])
        pixels = read_label_image(self.root, pair[1])
        check_size(path, Image.fromarray(pixels), image.width, image.height)
        return image, self.values.decode(pixels, path)


@dataclass(frozen=True)
class SegmentedSample:
    """One training crop. labels: uint8 [S, S]; the other fields as those of `collate.Sample`."""

    image: torch.Tensor
    labels: torch.Tensor
    index: int
    bad: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SegmentedBatch(Movable):
    """images float32 [B, 3, S, S]; labels uint8 [B, S, S]; the other fields as those of `collate.Batch`."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    replaced: int = 0
    bad: tuple[tuple[str, str], ...] = ()


class SegmentedImages(Dataset):
    """Training crops: a pure function of (seed, epoch, number), whatever the workers.

    A pair that cannot be read is replaced by the next one that can.
    """

    def __init__(
        self, pairs: Sequence[Pair], read: PairReader, transform: LabelTransform | None, seed: int = 0
    ) -> None:
        """The transform may be set later, as an attribute.

        Args:
            pairs: As of `load_pairs`.
            read: Reads one.
            transform: Makes the crop.
            seed: Of all draws.
        """
        self.pairs, self.read = list(pairs), read
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> SegmentedSample:
        """The crop for (epoch, number). Raises `UserError` when many pairs in a row cannot be read."""
        epoch, wanted = key
        if self.transform is None:
            raise ValueError("this data set has no transform yet: set its attribute `transform` first")
        hint = "check data.image_root and segmentation.classes"
        (image, labels), index, bad = read_or_next(self.read, self.pairs, wanted, hint)
        rng = np.random.default_rng([self.seed, epoch, wanted])
        return SegmentedSample(*self.transform(image, labels, rng), index, bad)


def collate_segmented(samples: Sequence[SegmentedSample]) -> SegmentedBatch:
    """Make a batch of at least one sample."""
    return SegmentedBatch(labels=torch.stack([sample.labels for sample in samples]), **stack_common(samples))


@dataclass(frozen=True)
class TestImage:
    """image float32 [3, H', W']; labels uint8 [H, W] at the original size; index: of the pair."""

    __test__ = False  # no test of pytest's

    image: torch.Tensor
    labels: np.ndarray
    index: int


class SegmentedEval(Dataset):
    """A test: every image once, resized, with its labels at the original size."""

    def __init__(self, pairs: Sequence[Pair], read: PairReader, transform: WholeTransform) -> None:
        """Reads every image's size from its header.

        Args:
            pairs: As of `load_pairs`.
            read: Reads one.
            transform: Resizes it.

        Raises:
            ImageError: For a file that is not there or whose size cannot be read. At an address only label images are asked for.
        """
        self.pairs, self.read, self.transform = list(pairs), read, transform
        self.sizes = [self._size(pair) for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TestImage:
        """Raises `ImageError` for a pair that cannot be read: a test without it would be another test."""
        image, labels = self.read(self.pairs[index])
        return TestImage(self.transform(image), labels, index)

    def batches(self, size: int) -> list[list[int]]:
        """Numbers of images that are alike in size, before and after resizing, at most `size` together."""
        alike: dict[tuple[int, int], list[int]] = {}
        for number, original in enumerate(self.sizes):
            alike.setdefault(original, []).append(number)
        # what wants most memory comes first, so that it fails early
        order = sorted(alike, key=lambda size: math.prod(fitted(size, self.transform.scale)), reverse=True)
        found = []
        for original in order:
            numbers = alike[original]
            found += [numbers[start : start + size] for start in range(0, len(numbers), size)]
        return found

    def _size(self, pair: Pair) -> tuple[int, int]:
        """Height and width."""

        def read(path: str) -> tuple[int, int]:
            with open_image(path) as image:
                return image.height, image.width

        check_there(self.read.root, pair[0])
        return at_root(self.read.root, pair[1], read)
