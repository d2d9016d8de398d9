"""COCO captions: {"images": [{id, file_name}], "annotations": [{image_id, caption}]}, joined on disk."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import json_items
from pela_vl.data.paths import resolve

from .records import Record, flickr_identity, image_identities


def coco_records(source: str, annotations: str, images: str, scratch: Path) -> Iterator[Record]:
    """One record per image in the file's order, with its captions in the file's order.

    Images and captions are joined in a temporary database on disk, so memory does not grow with the file. Captions of
    unknown images come last, as records with a problem.

    Args:
        source: the source's name, stored in the records.
        annotations: path of COCO's captions_*.json.
        images: folder of the images.
        scratch: path of the temporary database; it is deleted afterwards.

    Raises:
        UserError: If the file is no file of COCO captions or malformed.
    """
    scratch.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(scratch, isolation_level=None)) as table:
            _fill(table, annotations)
            yield from _join(table, source, images)
    finally:
        scratch.unlink(missing_ok=True)


def _fill(table: sqlite3.Connection, annotations: str) -> None:
    table.execute("PRAGMA journal_mode = OFF")
    table.execute("PRAGMA synchronous = OFF")
    table.execute("CREATE TABLE images (place INTEGER PRIMARY KEY, id TEXT, entry TEXT)")
    table.execute("CREATE TABLE captions (place INTEGER PRIMARY KEY, id TEXT, caption TEXT)")
    table.execute("BEGIN")
    found = set()
    for name, entry in json_items(annotations):
        found.add(name)
        if name == "images":
            table.execute("INSERT INTO images (id, entry) VALUES (?, ?)", (_id(entry, "id"), json.dumps(entry)))
        elif name == "annotations":
            caption = json.dumps(entry["caption"]) if isinstance(entry, dict) and "caption" in entry else None
            table.execute("INSERT INTO captions (id, caption) VALUES (?, ?)", (_id(entry, "image_id"), caption))
    if not {"images", "annotations"} <= found:
        raise UserError(f"{annotations}: is no file of COCO captions: 'images' and 'annotations' must be lists")
    table.execute("CREATE INDEX by_id ON captions (id)")
    table.execute("CREATE INDEX images_by_id ON images (id)")
    table.execute("COMMIT")


def _join(table: sqlite3.Connection, source: str, images: str) -> Iterator[Record]:
    for place, id_, text in table.execute("SELECT place, id, entry FROM images ORDER BY place"):
        rows = table.execute("SELECT caption FROM captions WHERE id = ? ORDER BY place", (id_,)).fetchall()
        captions = [json.loads(caption) if caption is not None else None for (caption,) in rows]
        yield _record(source, f"images[{place - 1}]", json.loads(text), captions, images)
    # captions of unknown images, grouped by id; captions without an id one by one
    alone = table.execute(
        "SELECT min(place), id, count(*) FROM captions WHERE id IS NULL OR id NOT IN "
        "(SELECT id FROM images WHERE id IS NOT NULL) GROUP BY coalesce(id, place), id IS NULL ORDER BY 1"
    )
    for place, id_, count in alone:
        problem = "malformed_entry" if id_ is None else "unknown_image"
        name = f"annotations[{place - 1}]" if id_ is None else json.loads(id_)
        yield Record(source, name, [None] * count, problem=problem)


def _record(source: str, place: str, entry: Any, captions: list[Any], images: str) -> Record:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or _id(entry, "id") is None:
        return Record(source, place, captions, problem="malformed_entry", detail="wants 'id' and 'file_name'")
    try:
        path = resolve(images, name)
    except UserError:
        return Record(source, entry["id"], captions, problem="path_outside_root", detail=name)
    identities = [f"coco:{entry['id']}", *image_identities(images, path), *flickr_identity(entry.get("flickr_url"))]
    return Record(source, entry["id"], captions, [path], identities=identities)


def _id(entry: Any, field: str) -> str | None:
    """The id as JSON text, so that 1 and "1" stay apart; None if there is none."""
    value = entry.get(field) if isinstance(entry, dict) else None
    return json.dumps(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
