"""Object annotations in COCO's layout: images, categories, boxes and masks, read and checked."""

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import read_json

Annotation = Mapping[str, Any]


@dataclass(frozen=True)
class CocoImage:
    """An image of the file and its annotations, crowds included. number: its id."""

    number: int
    file_name: str
    width: int
    height: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class CocoFile:
    """path: where it was read. categories: name by id, in the order of the ids. images: in the order of the file."""

    path: str
    categories: dict[int, str]
    images: tuple[CocoImage, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The categories' names in the order of their ids, which is that of the classes."""
        return tuple(self.categories.values())

    @property
    def annotations(self) -> int:
        return sum(len(image.annotations) for image in self.images)

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return all(annotation.get("segmentation") for image in self.images for annotation in image.annotations)


@dataclass(frozen=True)
class Objects:
    """What a detector learns of one image: boxes float32 [n, 4] (x1, y1, x2, y2), classes int64 [n], and masks uint8 [n, H, W],
    None where they are not wanted."""

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None


def read_coco(path: str | os.PathLike[str]) -> CocoFile:
    """Read a file of instances. Raises `UserError` naming the file and the entry that is not as COCO has it."""
    name = os.fspath(path)
    document = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise UserError(f"{name}: has no list {key!r}; a file of instances in COCO's layout is wanted")
    categories = _categories(name, document["categories"])
    by_image: dict[int, list[Annotation]] = defaultdict(list)
    known = {
        image.get("id") for image in document["images"] if isinstance(image, dict) and type(image.get("id")) is int
    }
    for place, annotation in enumerate(document["annotations"]):
        _check_annotation(f"{name}: annotations[{place}]", annotation, known, categories)
        by_image[annotation["image_id"]].append(annotation)
    images, seen = [], set()
    for place, image in enumerate(document["images"]):
        where = f"{name}: images[{place}]"
        number, width, height = (
            image.get(key) if isinstance(image, dict) else None for key in ("id", "width", "height")
        )
        if type(number) is not int or type(width) is not int or type(height) is not int or min(width, height) < 1:
            raise UserError(f"{where}: wants whole numbers id, width and height")
        if not isinstance(image.get("file_name"), str):
            raise UserError(f"{where}: wants a file_name")
        if number in seen:
            raise UserError(f"{where}: id {number} stands there twice")
        seen.add(number)
        images.append(CocoImage(number, image["file_name"], width, height, tuple(by_image[number])))
    if not images:
        raise UserError(f"{name}: names no image")
    return CocoFile(name, categories, tuple(images))


def _categories(name: str, entries: Sequence[Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for place, entry in enumerate(entries):
        number, text = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if type(number) is not int or not isinstance(text, str) or number in found or text in found.values():
            raise UserError(f"{name}: categories[{place}]: wants an id and a name that no other category has")
        found[number] = text
    if not found:
        raise UserError(f"{name}: names no category")
    return dict(sorted(found.items()))


def _check_annotation(where: str, entry: Any, images: set[Any], categories: Mapping[int, str]) -> None:
    if not isinstance(entry, dict) or type(entry.get("image_id")) is not int or entry["image_id"] not in images:
        raise UserError(f"{where}: image_id is that of no image")
    if type(entry.get("category_id")) is not int or entry["category_id"] not in categories:
        raise UserError(f"{where}: category_id {entry.get('category_id')!r} is that of no category")
    if "area" in entry and not _finite(entry["area"]):
        raise UserError(f"{where}: area wants a number, got {entry['area']!r}; leave it out where it is not known")
    for key in ("iscrowd", "ignore"):
        if entry.get(key, 0) not in (0, 1):
            raise UserError(f"{where}: {key} wants 0 or 1, got {entry[key]!r}")
    if not is_box(entry.get("bbox")):
        raise UserError(f"{where}: bbox wants four numbers [x, y, width, height], got {entry.get('bbox')!r}")


def is_box(value: Any) -> bool:
    """Whether a value is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(_finite(number) for number in value)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def learned(image: CocoImage) -> list[Annotation]:
    """The annotations that a detector learns from, as published: no crowd, none that is to be ignored, none outside the
    image, and none without area or narrower than a pixel."""
    found = []
    for annotation in image.annotations:
        x, y, width, height = annotation["bbox"]
        shown = min(x + width, image.width) > max(x, 0) and min(y + height, image.height) > max(y, 0)
        large = min(width, height) >= 1 and annotation.get("area", width * height) > 0
        if shown and large and not annotation.get("iscrowd") and not annotation.get("ignore"):
            found.append(annotation)
    return found


def objects_of(image: CocoImage, number: Mapping[int, int], masks: bool) -> Objects:
    """What is learned of an image, boxes cut to it.

    Args:
        image: With its annotations.
        number: Class of every category id.
        masks: Read them too.

    Raises:
        UserError: For an object without a mask where masks are wanted.
    """
    chosen = learned(image)
    boxes = np.array([annotation["bbox"] for annotation in chosen], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, np.array([image.width, image.height] * 2, dtype=np.float32))
    labels = np.array([number[annotation["category_id"]] for annotation in chosen], dtype=np.int64)
    shape = (len(chosen), image.height, image.width)
    drawn = np.zeros(shape, dtype=np.uint8) if masks else None
    if drawn is not None:
        for place, annotation in enumerate(chosen):
            drawn[place] = rasterise(annotation.get("segmentation"), image)
    return Objects(boxes, labels, drawn)


def rasterise(segmentation: Any, image: CocoImage) -> np.ndarray:
    """The mask uint8 [H, W] of polygons or run lengths, by COCO's own rules. Raises `UserError` for what is neither."""
    return coco_mask.decode(read_mask(segmentation, image))


def read_mask(segmentation: Any, image: CocoImage) -> dict[str, Any]:
    """`run_lengths`, with one error for all that it cannot read. Raises `UserError`."""
    try:
        return run_lengths(segmentation, image)
    except Exception as error:  # pycocotools raises whatever comes
        raise UserError(
            f"image {image.number} ({image.file_name}): an object has no mask that can be read ({error or 'none'}); mend it, or "
            "set detection.masks: false to do without masks"
        ) from None


def run_lengths(segmentation: Any, image: CocoImage) -> dict[str, Any]:
    """Polygons, or run lengths packed or not, as packed run lengths. Raises ValueError or TypeError for what is neither."""
    if isinstance(segmentation, list):
        # a polygon of fewer than three corners has no area
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not segmentation:
            raise ValueError("no polygon")
        if not polygons:
            return coco_mask.encode(np.zeros((image.height, image.width), dtype=np.uint8, order="F"))
        return coco_mask.merge(coco_mask.frPyObjects(polygons, image.height, image.width))
    if not isinstance(segmentation, dict) or list(segmentation.get("size", ())) != [image.height, image.width]:
        raise ValueError("neither polygons nor run lengths of the image's size")
    counts, pixels = segmentation["counts"], image.height * image.width
    if isinstance(counts, list):
        if sum(counts) != pixels or min(counts) < 0:
            raise ValueError(f"run lengths of {sum(counts)} pixels, the image has {pixels}")
        return coco_mask.frPyObjects(segmentation, image.height, image.width)
    # lengths that end early leave the rest of a decoded mask as the memory was
    decoded = coco_mask.decode(segmentation)
    if decoded.max(initial=0) > 1 or int(decoded.sum()) != int(coco_mask.area(segmentation)):
        raise ValueError("run lengths that end before the image does")
    return segmentation
