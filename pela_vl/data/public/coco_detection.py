"""COCO's instances as downloaded, and photographs with boxes, to the two files and the one image folder that a detector reads."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.data.json_files import read_json
from pela_vl.data.paths import resolve
from pela_vl.data.raw import kind
from pela_vl.data.sets.annotations import load_annotations
from pela_vl.data.sets.coco_file import CocoFile, is_box, learned, read_coco

IMAGES = {"train": 118_287, "val": 5_000}
"""Images of COCO 2017."""
FOLDERS = {"train": "train2017", "val": "val2017"}
CATEGORIES = 80


@dataclass(frozen=True)
class Counted:
    """Of a file: images, those without any annotation, objects that are learned, crowds, and what is left out (boxes outside
    their image, without area, narrower than a pixel, or marked to be ignored)."""

    images: int
    empty: int
    categories: int
    objects: int
    crowds: int
    left_out: int


def count(file: CocoFile) -> Counted:
    """What a file holds."""
    crowds = sum(bool(a.get("iscrowd")) for image in file.images for a in image.annotations)
    objects = sum(len(learned(image)) for image in file.images)
    empty = sum(not image.annotations for image in file.images)
    left = file.annotations - objects - crowds
    return Counted(len(file.images), empty, len(file.categories), objects, crowds, left)


def check_counts(found: Mapping[str, Counted], partial: bool) -> None:
    """Raises UserError where the counts are not COCO 2017's, unless a part of it is wanted."""
    for split, counted in found.items():
        wanted = (IMAGES[split], CATEGORIES)
        if (counted.images, counted.categories) != wanted and not partial:
            raise UserError(
                f"{split}: {counted.images:,} images of {counted.categories} categories; COCO 2017 has {wanted[0]:,} of "
                f"{wanted[1]}; give --partial to take another set"
            )


def gather(images: Path, annotations: Path, output: Path, partial: bool) -> dict[str, dict[str, int]]:
    """Write `output`/train.json, val.json and the link `output`/images; returns the counts of both.

    Args:
        images: Folder that holds train2017/ and val2017/.
        annotations: Folder that holds instances_train2017.json and instances_val2017.json.
        output: Where to.
        partial: Take another set than the whole COCO 2017.

    Raises:
        UserError: For counts that are not COCO's, and for images that are not there.
    """
    counts: dict[str, Counted] = {}
    for split, folder in FOLDERS.items():
        source = annotations / f"instances_{folder}.json"
        counts[split] = count(read_coco(source))
        check_counts({split: counts[split]}, partial)
        document = read_json(source)
        for image in document["images"]:
            image["file_name"] = f"{folder}/{image['file_name']}"
        _check_files(images, folder, [image["file_name"] for image in document["images"]])
        atomic_json(output / f"{split}.json", document)
    _link(images, output / "images")
    return {split: asdict(counted) for split, counted in counts.items()}


def _check_files(images: Path, folder: str, names: list[str]) -> None:
    there = {f"{folder}/{entry.name}" for entry in os.scandir(images / folder)} if (images / folder).is_dir() else set()
    absent = [name for name in names if name not in there]
    if absent:
        raise UserError(f"{images}: {len(absent):,} of {len(names):,} images are not there, such as {absent[0]}")


def _link(target: Path, link: Path) -> None:
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target.resolve(), target_is_directory=True)


def from_photographs(source: Path, output: Path, held_out: int) -> dict[str, dict[str, int]]:
    """Write the same of a folder of photographs with boxes and no masks: every so many-th image is in val.json.

    Args:
        source: Folder with annotations.json, a list of {image, image_id, width, height, objects: [{category, bbox}]}.
        output: Where to.
        held_out: Images of val.json.

    Raises:
        UserError: For entries that are not so, images that are not there, and too few of them.
    """
    fields = {"image": (str,), "image_id": (int,), "width": (int,), "height": (int,)}
    entries = load_annotations([source / "annotations.json"], fields)
    contents = json.loads((source / "annotations.json").read_text(encoding="utf-8"))
    objects = [_things(entry.place, content) for entry, content in zip(entries, contents, strict=True)]
    if not 1 <= held_out < len(entries):
        raise UserError(f"--test {held_out}: want from 1 to {len(entries) - 1} of the {len(entries)} images")
    names = sorted({thing["category"] for things in objects for thing in things})
    number = {name: place + 1 for place, name in enumerate(names)}
    chosen = {place * len(entries) // held_out for place in range(held_out)}
    found: dict[str, dict[str, int]] = {}
    for split in FOLDERS:
        images: list[Any] = []
        annotations: list[Any] = []
        for place, (entry, things) in enumerate(zip(entries, objects, strict=True)):
            if (place in chosen) != (split == "val"):
                continue
            path = resolve(source, entry.values["image"])
            if not os.path.isfile(path):
                raise UserError(f"{entry.place}: field 'image': {path}: no such file")
            values = entry.values
            size = {"width": values["width"], "height": values["height"]}
            images.append({"id": values["image_id"], "file_name": values["image"], **size})
            for thing in things:
                area = thing["bbox"][2] * thing["bbox"][3]
                annotation = {"id": len(annotations) + 1, "image_id": values["image_id"], "iscrowd": 0, "area": area}
                annotations.append(annotation | {"category_id": number[thing["category"]], "bbox": thing["bbox"]})
        categories = [{"id": number[name], "name": name} for name in names]
        document = {"images": images, "annotations": annotations, "categories": categories}
        atomic_json(output / f"{split}.json", document)
        found[split] = asdict(count(read_coco(output / f"{split}.json")))
    _link(source, output / "images")
    return found


def _things(where: str, content: Any) -> list[Any]:
    """The objects of a photograph's entry, checked."""
    things = content.get("objects", [])
    if not isinstance(things, list):
        raise UserError(f"{where}: field 'objects': wants a list, got {kind(things)}")
    for place, thing in enumerate(things):
        if not isinstance(thing, dict) or not isinstance(thing.get("category"), str) or not is_box(thing.get("bbox")):
            raise UserError(
                f"{where}: objects[{place}]: wants a category and a bbox [x, y, width, height], got {thing!r:.80}"
            )
    return things


def show(counts: Mapping[str, int]) -> str:
    """Counts as a line."""
    return (
        f"{counts['images']:>8,} images ({counts['empty']:,} empty) {counts['objects']:>9,} objects of "
        f"{counts['categories']} categories, {counts['crowds']:,} crowds, {counts['left_out']:,} left out"
    )
