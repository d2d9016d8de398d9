"""Images with objects for training and testing a detector.

Shapes: B images, H x W pixels, G objects of all images of a batch.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Key, Movable, stack_common
from pela_vl.data.detection_transforms import DetectionTransform, FixedTransform, Shown, pad, padded, to_pixels
from pela_vl.data.images import ImageReader, check_there, read_or_next
from pela_vl.data.paths import resolve
from pela_vl.data.sets.coco_file import CocoFile, CocoImage, objects_of, read_coco, read_mask
from pela_vl.data.sizes import check_size


@dataclass(frozen=True)
class DetectionSample:
    """One training image. image: float32 [3, H, W]; shown: its objects; the other fields as those of `collate.Sample`."""

    image: Tensor
    shown: Shown
    key: Key
    index: int
    bad: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DetectionBatch(Movable):
    """images float32 [B, 3, H, W], padded with zeros on the right and below; sizes int64 [B, 2], height and width without the
    padding; boxes float32 [G, 4]; labels, owners int64 [G], class and number of the image; masks bool [G, H, W] or None; the
    other fields as those of `collate.Batch`."""

    images: Tensor
    sizes: Tensor
    boxes: Tensor
    labels: Tensor
    owners: Tensor
    masks: Tensor | None
    indices: Tensor
    replaced: int = 0
    bad: tuple[tuple[str, str], ...] = ()


class DetectionImages(Dataset):
    """Training images: a pure function of (seed, epoch, index), whatever the workers.

    An image that cannot be read is replaced, with its objects, by the next one that can.

    Args:
        files: Annotations; all must have the same categories.
        image_root: Folder that the images' names are relative to.
        masks: Whether objects have masks.
        seed: Of the draws.
        keep_empty: Keep images without annotations, which the published recipes leave out.
        cache_mb: MiB of decoded images kept in memory.
    """

    least_side = 32  # pixels; narrower images are left out, as published

    def __init__(
        self,
        files: Sequence[str],
        image_root: str,
        masks: bool = True,
        seed: int = 0,
        keep_empty: bool = False,
        cache_mb: float = 0,
    ) -> None:
        read = [read_coco(file) for file in files]
        other = next((file for file in read if file.categories != read[0].categories), None)
        if other is not None:
            raise UserError(f"{other.path}: has other categories than {read[0].path}")
        self.classes, self.masks, self.seed = read[0].names, masks, seed
        self.number = {category: place for place, category in enumerate(read[0].categories)}
        self.images = [
            image
            for file in read
            for image in file.images
            if (keep_empty or image.annotations) and min(image.width, image.height) >= self.least_side
        ]
        if not self.images:
            raise UserError(f"{', '.join(files)}: no image has annotations; set detection.keep_empty to train on it")
        if masks:
            _require_masks(read)
        for image in self.images:
            resolve(image_root, image.file_name)
        self.read = _Read(image_root, cache_mb)
        self.transform: DetectionTransform | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> DetectionSample:
        """The image for (epoch, index). Raises `UserError` when many images in a row cannot be read."""
        epoch, wanted = key
        if self.transform is None:
            raise ValueError("the data set has no transform")
        image, index, bad = read_or_next(self.read, self.images, wanted)
        found = objects_of(self.images[index], self.number, self.masks)
        masks = None if found.masks is None else torch.from_numpy(found.masks)
        shown = Shown(to_pixels(image), torch.from_numpy(found.boxes), torch.from_numpy(found.labels), masks)
        tensor, seen = self.transform(shown, np.random.default_rng([self.seed, epoch, wanted]))
        return DetectionSample(tensor, replace(seen, pixels=seen.pixels[:, :0]), (epoch, wanted), index, bad)


def _require_masks(files: Sequence[CocoFile]) -> None:
    for file in files:
        if not file.has_masks:
            raise UserError(f"{file.path}: objects without a mask; set detection.masks: false to learn boxes alone")


class _Read:
    """Reads an image of the annotations in the pixels that they are in."""

    def __init__(self, root: str, cache_mb: float = 0) -> None:
        self.reader = ImageReader(root, cache_mb, stored_pixels=True)

    def __call__(self, entry: CocoImage) -> Image.Image:
        image = self.reader(entry.file_name)
        check_size(os.path.join(self.reader.root, entry.file_name), image, entry.width, entry.height)
        return image


def collate_detection(samples: Sequence[DetectionSample]) -> DetectionBatch:
    """A batch of at least one sample, padded to the largest, and that to multiples of 32 pixels."""
    height, width = (padded(max(sample.image.shape[axis] for sample in samples)) for axis in (1, 2))
    sizes = torch.tensor([sample.image.shape[1:] for sample in samples])
    shown = [sample.shown for sample in samples]
    masks = None
    if all(one.masks is not None for one in shown):
        masks = torch.cat([pad(one.masks.bool(), height, width) for one in shown if one.masks is not None])
    common = stack_common([replace(sample, image=pad(sample.image, height, width)) for sample in samples])
    owners = [torch.full((len(one.labels),), place) for place, one in enumerate(shown)]
    return DetectionBatch(
        sizes=sizes,
        boxes=torch.cat([one.boxes for one in shown]),
        labels=torch.cat([one.labels for one in shown]),
        owners=torch.cat(owners),
        masks=masks,
        **common,
    )


class DetectionEval(Dataset):
    """A test: every image of a file once, those without objects too. An item is an image, float32 [3, H, W].

    Args:
        file: Annotations.
        image_root: Folder that the images' names are relative to.
        classes: Names of the model's classes.
        transform: Of the images.
        masks: Read the objects' masks, where all of them have one.

    Raises:
        UserError: For a category that the model does not know, an image that is not there, and a mask that cannot be read.
    """

    def __init__(
        self, file: str, image_root: str, classes: Sequence[str], transform: FixedTransform, masks: bool = True
    ) -> None:
        self.file, self.transform, self.classes = read_coco(file), transform, tuple(classes)
        self.read, self.root = _Read(image_root), image_root
        unknown = [name for name in self.file.names if name not in self.classes]
        if unknown:
            raise UserError(f"{file}: category {unknown[0]!r} is none of the {len(self.classes)} of the model")
        ids = {name: number for number, name in self.file.categories.items()}
        self.category: Mapping[int, int] = {place: ids[name] for place, name in enumerate(self.classes) if name in ids}
        for image in self.file.images:
            check_there(image_root, image.file_name)
        self.masks = masks and self.file.has_masks and self.file.annotations > 0
        self._annotations = self._numbered()  # now: a pass over all images must not end at a mask that cannot be read

    def __len__(self) -> int:
        return len(self.file.images)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image as the model sees it, without padding."""
        image = self.file.images[index]
        return self.transform.size(image.height, image.width)

    def __getitem__(self, index: int) -> Tensor:
        """Raises `ImageError` for an image that cannot be read: a test without it would be another test."""
        return self.transform(self.read(self.file.images[index]))

    def document(self) -> dict[str, Any]:
        """What COCO's evaluation reads: annotations numbered from 1, area and iscrowd filled in where they are missing."""
        images = [{"id": i.number, "width": i.width, "height": i.height} for i in self.file.images]
        return {
            "images": images,
            "annotations": [dict(annotation) for annotation in self._annotations],  # COCO's evaluation writes into them
            "categories": [{"id": number, "name": name} for number, name in self.file.categories.items()],
        }

    def _numbered(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for image in self.file.images:
            for annotation in image.annotations:
                width, height = annotation["bbox"][2:]
                one = {"area": width * height, "iscrowd": 0, **annotation, "id": len(found) + 1}
                mask = one.pop("segmentation", None)
                found.append(one | {"segmentation": read_mask(mask, image)} if self.masks else one)
        return found
