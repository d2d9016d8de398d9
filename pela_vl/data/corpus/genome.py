"""Visual Genome: region_descriptions.json, each image with the phrases of its regions, and image_data.json."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import json_items

from .records import Record

_FOLDERS = ("VG_100K", "VG_100K_2", ".")


def genome_records(source: str, regions: str, images: str, image_data: str | None, scratch: Path) -> Iterator[Record]:
    """One record per image in the order of the regions' file, with the phrases of its regions as captions.

    Args:
        source: the source's name, stored in the records.
        regions: path of region_descriptions.json.
        images: the folder above VG_100K and VG_100K_2, or one that holds all images itself.
        image_data: path of image_data.json; None: not at hand. It says which images are in COCO and Flickr too, which
            the leak check needs, and the images' sizes, from which the area fraction of each region is computed.
        scratch: path of the temporary database; it is deleted afterwards.

    Raises:
        UserError: If a file is malformed.
    """
    scratch.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(scratch, isolation_level=None)) as table:
            _fill(table, image_data)
            for place, (_, entry) in enumerate(json_items(regions)):
                yield _record(source, place, entry, images, table)
    finally:
        scratch.unlink(missing_ok=True)


def _fill(table: sqlite3.Connection, image_data: str | None) -> None:
    table.execute("PRAGMA journal_mode = OFF")
    table.execute("CREATE TABLE known (id INTEGER PRIMARY KEY, identities TEXT, pixels INTEGER)")
    table.execute("BEGIN")
    for place, (_, entry) in enumerate(json_items(image_data) if image_data else ()):
        number = _number(entry, "image_id", "id")
        if number is None:
            raise UserError(f"{image_data}: entry {place}: wants a whole number 'image_id' or 'id'")
        names = [f"{name}:{entry[f'{name}_id']}" for name in ("coco", "flickr") if entry.get(f"{name}_id")]
        size = [_number(entry, field) or 0 for field in ("width", "height")]
        table.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", (number, json.dumps(names), size[0] * size[1]))
    table.execute("COMMIT")


def _record(source: str, place: int, entry: Any, images: str, table: sqlite3.Connection) -> Record:
    number = _number(entry, "id", "image_id")
    regions = entry.get("regions") if isinstance(entry, dict) else None
    if number is None or not isinstance(regions, list):
        detail = "wants a whole number 'id' and a list 'regions'"
        return Record(source, f"entry {place}", problem="malformed_entry", detail=detail)
    captions = [region.get("phrase") if isinstance(region, dict) else None for region in regions]
    row = table.execute("SELECT identities, pixels FROM known WHERE id = ?", (number,)).fetchone()
    shares = [_area_fraction(region, row[1]) for region in regions] if row and row[1] else []
    paths = [os.path.normpath(os.path.join(images, folder, f"{number}.jpg")) for folder in _FOLDERS]
    return Record(source, number, captions, paths, identities=[f"vg:{number}", *(json.loads(row[0]) if row else [])],
                  shares=shares)  # fmt: skip


def _area_fraction(region: Any, pixels: int) -> float:
    """The share of the image that a region covers; 0 where it has no size."""
    width, height = (_number(region, field) or 0 for field in ("width", "height"))
    return round(min(max(width, 0) * max(height, 0) / pixels, 1.0), 4)


def _number(entry: Any, *fields: str) -> int | None:
    for field in fields:
        value = entry.get(field) if isinstance(entry, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            return value
    return None
