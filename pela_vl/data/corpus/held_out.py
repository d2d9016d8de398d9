"""Images of test and validation sets, read from the files that define them. They must not enter the corpus."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import json_items
from pela_vl.data.paths import is_file
from pela_vl.data.plain_pickle import read_plain_pickle

from .records import Record, image_identities

_SPLITS = {"val", "test", "testA", "testB", "testC", "dev"}
_COCO_NAMES = ("COCO_train2014_{:012d}.jpg", "COCO_val2014_{:012d}.jpg", "COCO_test2015_{:012d}.jpg", "{:012d}.jpg")


def karpathy_held_out(file: str, images: str | None) -> Iterator[Record]:
    """The val and test images of a Karpathy file (COCO, Flickr30K, scenes)."""
    flickr = _dataset(file).startswith("flickr")
    found = False
    for place, (name, entry) in enumerate(json_items(file)):
        if name != "images":
            continue
        found = True
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise UserError(f"{file}: images[{place}]: wants an object with 'filename' and 'split'")
        if entry.get("split") not in _SPLITS:
            continue
        stem = Path(entry["filename"]).stem
        path = os.path.join(str(entry.get("filepath", "")), entry["filename"])
        names = (path, entry["filename"])
        record = _held(file, stem, [], images, names)
        if "cocoid" in entry:
            record.identities.append(f"coco:{entry['cocoid']}")
        if flickr and stem.isdigit():  # Flickr30K calls its files by Flickr's number
            record.identities.append(f"flickr:{stem}")
        known = image_identities(None, path)
        # if the image exists it is compared by pixels; a path can denote another image in another folder
        if known[0].startswith("coco:") or not any(map(is_file, record.paths)):
            record.identities.extend(known)
        yield record
    if not found:
        raise UserError(f"{file}: has no list 'images'; a Karpathy file is wanted")


def _dataset(file: str) -> str:
    """The data set's name in a Karpathy file; the entry comes after the images."""
    return next((value for name, value in json_items(file) if name == "dataset" and isinstance(value, str)), "")


def refs_held_out(file: str, images: str | None) -> Iterator[Record]:
    """The val, testA and testB images of a refs(...).p file."""
    seen = set()
    for place, ref in enumerate(_load_refs(file)):
        if not isinstance(ref, dict) or not isinstance(ref.get("image_id"), int) or "split" not in ref:
            raise UserError(f"{file}: refs[{place}]: wants 'image_id' and 'split'")
        if ref["split"] in _SPLITS and ref["image_id"] not in seen:
            seen.add(ref["image_id"])
            names = (str(ref.get("file_name", "")), *(name.format(ref["image_id"]) for name in _COCO_NAMES))
            yield _held(file, ref["image_id"], [f"coco:{ref['image_id']}"], images, names)


def vqa_held_out(file: str, images: str | None) -> Iterator[Record]:
    """Every image of a VQA v2 questions file, whatever its split."""
    seen: set[int] = set()
    for place, (name, entry) in enumerate(json_items(file)):
        if name != "questions":
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int):
            raise UserError(f"{file}: questions[{place}]: wants a whole number 'image_id'")
        number = entry["image_id"]
        if number not in seen:
            seen.add(number)
            yield _held(file, number, [f"coco:{number}"], images, [name.format(number) for name in _COCO_NAMES])
    if not seen:
        raise UserError(f"{file}: has no list 'questions'; a VQA v2 questions file is wanted")


def folder_held_out(folder: str, _: str | None = None) -> Iterator[Record]:
    """Every file below a folder, compared by content alone."""
    count = 0
    for path, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(name for name in names if not name.startswith(".")):
            count += 1
            yield Record(folder, name, paths=[os.path.join(path, name)], held_out=True)
    if not count:
        raise UserError(f"{folder}: holds no file")


def _held(file: str, id_: Any, identities: list[str], images: str | None, names: Any) -> Record:
    paths = [os.path.normpath(os.path.join(images, name)) for name in dict.fromkeys(names) if name] if images else []
    return Record(file, id_, paths=paths, identities=identities, held_out=True)


def _load_refs(file: str) -> list[Any]:
    refs = read_plain_pickle(file)
    if not isinstance(refs, list):
        raise UserError(f"{file}: wants a list of refs")
    return refs
