"""Annotation lists as ALBEF published them: JSON files holding a list of objects, read and checked field by field."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import read_json
from pela_vl.data.paths import resolve
from pela_vl.data.text import has_text

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Entry:
    """One checked element of an annotation file: number `index` of the file `name`, which is number `file` of those
    read.
    """

    name: str
    index: int
    file: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """Where it came from, for messages."""
        return f"{self.name}: entry {self.index}"


def load_annotations(
    files: Sequence[PathLike], fields: Mapping[str, tuple[type, ...]], optional: Mapping[str, tuple[type, ...]] = {}
) -> list[Entry]:
    """Read JSON list files one after the other and check fields of every element.

    Args:
        files: paths of the lists.
        fields: required fields, with the types that each may have. Elements of a list must be strings.
        optional: fields that may be absent, likewise. Fields named in neither are dropped.

    Raises:
        UserError: Naming file, index and field; also when a file is absent or no JSON list, and when there is no entry
            at all.
    """
    files = [files] if isinstance(files, str | os.PathLike) else list(files)
    entries = []
    for number, file in enumerate(files):
        name = os.fspath(file)
        for index, element in enumerate(_read_list(file)):
            place = f"{name}: entry {index}"
            if not isinstance(element, dict):
                raise UserError(f"{place}: wants an object with {', '.join(fields)}, got {_kind(element)}")
            absent = [key for key in fields if key not in element]
            if absent:
                raise UserError(f"{place}: field '{absent[0]}' is missing")
            values = {key: element[key] for key in (*fields, *optional) if key in element}
            for key, value in values.items():
                _check_value(f"{place}: field '{key}'", value, fields.get(key) or optional[key])
            entries.append(Entry(name, index, number, values))
    if not entries:
        raise UserError(f"no entries in {', '.join(os.fspath(file) for file in files) or 'an empty list of files'}")
    return entries


def check_image(entry: Entry, image_root: PathLike) -> None:
    """Raise `UserError` naming the entry when its image path leaves the root. The disk is not read."""
    try:
        resolve(image_root, entry.values["image"])
    except UserError as error:
        raise UserError(f"{entry.place}: field 'image': {error}") from error


def check_text(entry: Entry, field: str, text: str) -> None:
    """Check that cleaning leaves at least one word of a text.

    Args:
        entry: named in the error.
        field: of the entry, named in the error.
        text: to be checked.

    Raises:
        UserError: If no word is left.
    """
    if not has_text(text):
        name = entry.values["image"]
        raise UserError(f"{entry.place}: field '{field}' of image {name}: no word in {text!r} after cleaning")


def dense_image_ids(entries: Sequence[Entry]) -> np.ndarray:
    """Number the images from 0, int64 [n]: entries agree when their path does, or their `image_id` within one file.

    Ids of different files are not compared, as two data sets may use the same one for different images.
    """
    known: dict[tuple[object, ...], int] = {}
    ids, count = [], 0
    for entry in entries:
        keys: list[tuple[object, ...]] = [(os.path.normpath(entry.values["image"]),)]
        if "image_id" in entry.values:
            keys.append((entry.file, str(entry.values["image_id"])))
        number = next((known[key] for key in keys if key in known), count)
        count = max(count, number + 1)
        for key in keys:
            known.setdefault(key, number)
        ids.append(number)
    return np.asarray(ids, dtype=np.int64)


def _read_list(file: PathLike) -> list[Any]:
    content = read_json(file, if_garbled="mend it")
    if not isinstance(content, list):
        raise UserError(f"{os.fspath(file)}: wants a JSON list of entries, got {_kind(content)}")
    return content


def _check_value(place: str, value: Any, types: tuple[type, ...]) -> None:
    # bool is an int to Python, not to a reader of annotations
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        wanted = " or ".join(_NAMES.get(kind, kind.__name__) for kind in types)
        raise UserError(f"{place}: wants {wanted}, got {_kind(value)}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise UserError(f"{place}[{index}]: wants a string, got {_kind(item)}")


_NAMES = {str: "a string", int: "an integer", float: "a number", list: "a list", dict: "an object", bool: "a boolean"}


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)
