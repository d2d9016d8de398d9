"""The raw inputs as units of work: each is listed whole, by one process, into a file of records."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_write

from .coco import coco_records
from .genome import genome_records
from .held_out import folder_held_out, karpathy_held_out, refs_held_out, vqa_held_out
from .img2dataset import find_shards, shard_records
from .lists import list_records
from .records import Record
from .state import unwritable
from .table import table_records

_HELD_OUT: dict[str, Callable[[str, str | None], Iterator[Record]]] = {
    "karpathy": karpathy_held_out,
    "refs": refs_held_out,
    "vqa": vqa_held_out,
    "images": folder_held_out,
}


@dataclass(frozen=True)
class Unit:
    """One raw file.

    Attributes:
        kind: coco, vg, table, list or shard (of img2dataset); or, for a held-out set, a key of `_HELD_OUT`.
        source: name of the source; empty for a held-out set.
        path: the raw file.
        images: folder of its images; None where it names none.
        extra: Visual Genome's image_data.json.
        part: number of the file within its source, from 1; the ids of later parts start with it.
        size: bytes of the raw file, by which a resumed run knows that it is still the same.
        strip: prefix that a list's paths begin with and that is removed.
        sources: the sources that a held-out set is kept out of; empty: all.
    """

    kind: str
    source: str
    path: str
    images: str | None = None
    extra: str | None = None
    part: int = 1
    size: int = 0
    strip: str = ""
    sources: tuple[str, ...] = ()

    @property
    def image_folder(self) -> str:
        """`images`. Raises ValueError for a unit without."""
        if self.images is None:
            raise ValueError(f"{self.path}: a unit of kind {self.kind} that names no folder of images")
        return self.images


def is_downloaded(folder: str) -> bool:
    """Whether a folder holds anything that img2dataset wrote."""
    try:
        return bool(find_shards(folder))
    except UserError:
        return False


def source_units(source: str, kind: str, arguments: list[str], part: int = 1, strip: str = "") -> list[Unit]:
    """Units of one part of a source.

    Args:
        source: its name.
        kind: format of the raw files; see `_WANTED` for the paths that each needs.
        arguments: the paths.
        part: which of several parts, from 1.
        strip: prefix that a list's paths begin with and that is removed.

    Raises:
        UserError: If the number of paths is wrong or a path does not exist.
    """
    if len(arguments) not in _WANTED[kind][0]:
        raise UserError(f"{source}: {len(arguments)} paths given; wants {_WANTED[kind][1]}")
    if kind == "img2dataset":
        return [_unit("shard", source, shard, arguments[0], part=part) for shard in find_shards(arguments[0])]
    if not os.path.isdir(arguments[1]):
        raise UserError(f"{source}: {arguments[1]} is no folder of images")
    extra = arguments[2] if len(arguments) > 2 else None
    return [replace(_unit(kind, source, arguments[0], arguments[1], extra, part), strip=strip)]


_WANTED = {
    "coco": ((2,), "ANNOTATIONS IMAGES"),
    "vg": ((2, 3), "REGIONS IMAGES [IMAGE_DATA]"),
    "table": ((2,), "TABLE IMAGES"),
    "list": ((2,), "LIST IMAGES"),
    "img2dataset": ((1,), "the FOLDER that img2dataset wrote"),
}


def held_out_units(kind: str, arguments: list[str], sources: Sequence[str] = ()) -> list[Unit]:
    """The unit of one held-out set.

    Args:
        kind: "karpathy", "refs", "vqa" or "images".
        arguments: the file and, optionally, the folder of its images; for "images" one folder of images.
        sources: the sources that the set is kept out of; empty: all.

    Raises:
        UserError: If the number of paths is wrong or a path does not exist.
    """
    if len(arguments) > (1 if kind == "images" else 2):
        raise UserError(f"held-out {kind}: {len(arguments)} paths given; wants one file and one folder of its images")
    if len(arguments) == 2 and not os.path.isdir(arguments[1]):
        raise UserError(f"held-out {kind}: {arguments[1]} is no folder of images")
    images = arguments[1] if len(arguments) > 1 else None
    return [replace(_unit(kind, "", arguments[0], images), sources=tuple(sources))]


def unit_records(unit: Unit, scratch: Path) -> Iterator[Record]:
    """All records of a unit in a fixed order. scratch: a file name that may be used meanwhile."""
    match unit.kind:
        case "coco":
            return coco_records(unit.source, unit.path, unit.image_folder, scratch)
        case "vg":
            return genome_records(unit.source, unit.path, unit.image_folder, unit.extra, scratch)
        case "table":
            return _numbered(table_records(unit.source, unit.path, unit.image_folder), unit.part)
        case "list":
            return _numbered(list_records(unit.source, unit.path, unit.image_folder, unit.strip), unit.part)
        case "shard":
            return _numbered(shard_records(unit.source, unit.path), unit.part)
    records = _HELD_OUT[unit.kind](unit.path, unit.images)
    return (replace(record, held_out_of=list(unit.sources)) for record in records)


def list_unit(unit: Unit, path: Path) -> int:
    """Write the records of a unit to `path`, whole or not at all; return their number."""
    count = 0
    scratch = path.with_suffix(".sqlite")
    try:
        with atomic_write(path, "w") as file:
            for record in unit_records(unit, scratch):
                file.write(record.line())
                count += 1
    except sqlite3.Error as error:
        raise unwritable(scratch, error) from None
    return count


def _numbered(records: Iterator[Record], part: int) -> Iterator[Record]:
    """Row numbers and keys begin anew in every table and folder; ids must not."""
    return records if part == 1 else (replace(record, id=f"{part}-{record.id}") for record in records)


def _unit(
    kind: str, source: str, path: str, images: str | None = None, extra: str | None = None, part: int = 1
) -> Unit:
    for name in filter(None, (path, images, extra)):
        if not os.path.exists(name):
            raise UserError(f"{source or 'held-out ' + kind}: {name}: no such file or folder")
    # the size of a folder entry says nothing about its files
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    folder, more = (os.path.abspath(name) if name else None for name in (images, extra))
    return Unit(kind, source, os.path.abspath(path), folder, more, part, size)
