"""The raw inputs as units of work: each is listed whole, by one process, into a file of records."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_write

from .coco import coco_records
from .genome import genome_records
from .held_out import folder_held_out, karpathy_held_out, refs_held_out, vqa_held_out
from .img2dataset import find_shards, shard_records
from .records import Record
from .table import table_records

# Sources in the order in which they enter: of equal pictures the first is kept.
SOURCES = ("coco", "vg", "cc3m_train", "cc3m_val", "cc12m", "sbu")
_HELD_OUT = {
    "karpathy": karpathy_held_out,
    "refs": refs_held_out,
    "vqa": vqa_held_out,
    "images": folder_held_out,
}


@dataclass(frozen=True)
class Unit:
    """kind: coco, vg, table or shard (of img2dataset) with the source's name; or one of `_HELD_OUT`, source empty.

    path: the raw file. images: folder of its pictures. extra: VG's image_data.json. part: which of several tables or
    folders of one source, from 1; the ids of later parts start with it. size: of the raw file, by which a resumed run
    knows that it is still the same.
    """

    kind: str
    source: str
    path: str
    images: str | None = None
    extra: str | None = None
    part: int = 1
    size: int = 0


def source_units(source: str, kind: str, arguments: list[str], part: int = 1) -> list[Unit]:
    """Units of one source as the command line gives it. Raises `UserError` for paths that do not exist.

    kind: coco ANNOTATIONS IMAGES; vg REGIONS IMAGES [IMAGE_DATA]; pairs TABLE IMAGES, or FOLDER of img2dataset.
    """
    if kind == "pairs" and len(arguments) == 1:
        return [_unit("shard", source, shard, arguments[0], part=part) for shard in find_shards(arguments[0])]
    wanted = {"coco": (2,), "vg": (2, 3), "pairs": (2,)}[kind]
    if len(arguments) not in wanted:
        raise UserError(f"{source}: {len(arguments)} paths given; wants {_WANTED[kind]}")
    if not os.path.isdir(arguments[1]):
        raise UserError(f"{source}: {arguments[1]} is no folder of pictures")
    return [_unit("table" if kind == "pairs" else kind, source, *arguments, part=part)]


_WANTED = {
    "coco": "ANNOTATIONS IMAGES",
    "vg": "REGIONS IMAGES [IMAGE_DATA]",
    "pairs": "TABLE IMAGES, or the one FOLDER that img2dataset wrote",
}


def held_out_units(kind: str, arguments: list[str]) -> list[Unit]:
    """The unit of one held-out set: FILE [IMAGES], or a FOLDER of pictures (kind "images")."""
    if len(arguments) > (1 if kind == "images" else 2):
        raise UserError(f"held-out {kind}: {len(arguments)} paths given; wants one file and one folder of its pictures")
    if len(arguments) == 2 and not os.path.isdir(arguments[1]):
        raise UserError(f"held-out {kind}: {arguments[1]} is no folder of pictures")
    return [_unit(kind, "", *arguments)]


def unit_records(unit: Unit, scratch: Path) -> Iterator[Record]:
    """All records of a unit in a fixed order. scratch: a file name that may be used meanwhile."""
    match unit.kind:
        case "coco":
            return coco_records(unit.source, unit.path, unit.images, scratch)
        case "vg":
            return genome_records(unit.source, unit.path, unit.images, unit.extra, scratch)
        case "table":
            return _numbered(table_records(unit.source, unit.path, unit.images), unit.part)
        case "shard":
            return _numbered(shard_records(unit.source, unit.path), unit.part)
    return _HELD_OUT[unit.kind](unit.path, unit.images)


def list_unit(unit: Unit, path: Path) -> int:
    """Write the records of a unit to `path`, whole or not at all; return their number."""
    count = 0
    with atomic_write(path, "w") as file:
        for record in unit_records(unit, path.with_suffix(".sqlite")):
            file.write(record.line())
            count += 1
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
    # what happens to lie in a folder is not looked at here: a folder's own size says nothing
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    absolute = [os.path.abspath(name) if name else None for name in (path, images, extra)]
    return Unit(kind, source, *absolute, part, size)
