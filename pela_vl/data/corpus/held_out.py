"""The pictures of test and validation sets, from the files that define them: they must not enter the corpus."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError

from .json_stream import json_items
from .records import Record

_SPLITS = {"val", "test", "testA", "testB", "testC", "dev"}
_COCO_NAMES = ("COCO_train2014_{:012d}.jpg", "COCO_val2014_{:012d}.jpg", "COCO_test2015_{:012d}.jpg", "{:012d}.jpg")


def karpathy_held_out(file: str, images: str | None) -> Iterator[Record]:
    """The val and test pictures of a Karpathy file (COCO, Flickr30K, scenes)."""
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
        identities = [f"name:{stem}"]
        if "cocoid" in entry:
            identities.append(f"coco:{entry['cocoid']}")
        elif stem.isdigit():  # Flickr30K calls its files by Flickr's number
            identities.append(f"flickr:{stem}")
        names = (os.path.join(str(entry.get("filepath", "")), entry["filename"]), entry["filename"])
        yield _held(file, stem, identities, images, names)
    if not found:
        raise UserError(f"{file}: has no list 'images'; a Karpathy file is wanted")


def refs_held_out(file: str, images: str | None) -> Iterator[Record]:
    """The val, testA and testB pictures of a refs(...).p file."""
    seen = set()
    for place, ref in enumerate(_load_refs(file)):
        if not isinstance(ref, dict) or not isinstance(ref.get("image_id"), int) or "split" not in ref:
            raise UserError(f"{file}: refs[{place}]: wants 'image_id' and 'split'")
        if ref["split"] in _SPLITS and ref["image_id"] not in seen:
            seen.add(ref["image_id"])
            names = (str(ref.get("file_name", "")), *(name.format(ref["image_id"]) for name in _COCO_NAMES))
            yield _held(file, ref["image_id"], [f"coco:{ref['image_id']}"], images, names)


def vqa_held_out(file: str, images: str | None) -> Iterator[Record]:
    """Every picture of a VQA v2 questions file: give those of the splits to hold out."""
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
    """Every file below a folder, by content alone."""
    count = 0
    for path, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            count += 1
            yield Record(folder, name, paths=[os.path.join(path, name)], held_out=True)
    if not count:
        raise UserError(f"{folder}: holds no file")


def _held(file: str, id_: Any, identities: list[str], images: str | None, names: Any) -> Record:
    paths = [os.path.normpath(os.path.join(images, name)) for name in dict.fromkeys(names) if name] if images else []
    return Record(file, id_, paths=paths, identities=identities, held_out=True)


class _PlainData(pickle.Unpickler):
    """Reads lists, dicts, numbers and texts; a pickle that asks for anything else is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def _load_refs(file: str) -> list[Any]:
    try:
        with open(file, "rb") as stream:
            refs = _PlainData(stream, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a malformed pickle fails in any way
        raise UserError(f"{file}: is no pickle of plain data ({error}); a refs(...).p file is wanted") from None
    if not isinstance(refs, list):
        raise UserError(f"{file}: wants a list of refs")
    return refs
