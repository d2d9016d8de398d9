"""Lists as ALBEF published them (json_pretrain.zip): [{"image": path, "caption": text or texts}, ...]."""

from collections.abc import Iterator
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import json_items
from pela_vl.data.paths import resolve

from .records import Record, image_identities


def list_records(source: str, file: str, images: str, strip: str = "") -> Iterator[Record]:
    """One record per run of entries with the same image; its id is the number of the first entry.

    Args:
        source: the source's name, stored in the records.
        file: path of the list.
        images: folder below which the paths lie.
        strip: prefix of the paths on the machine that wrote the list, which is removed; "" for none.

    Raises:
        UserError: If the file is no JSON list.
    """
    last: Record | None = None
    for number, (name, entry) in enumerate(json_items(file)):
        if name is not None:
            raise UserError(f"{file}: wants a list of entries with 'image' and 'caption'")
        record = _record(source, number, entry, images, strip)
        if last is not None and last.problem is record.problem is None and last.paths == record.paths:
            last.captions.extend(record.captions)
            continue
        if last is not None:
            yield last
        last = record
    if last is not None:
        yield last


def _record(source: str, number: int, entry: Any, images: str, strip: str) -> Record:
    path = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(path, str) or "caption" not in entry:
        detail = f"entry {number}: wants 'image' and 'caption'"
        return Record(source, number, [None], problem="malformed_entry", detail=detail)
    captions = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
    try:
        if not path.startswith(strip):
            raise UserError(f"{path}: does not begin with {strip}")
        full = resolve(images, path.removeprefix(strip).lstrip("/") if strip else path)
    except UserError:
        return Record(source, number, list(captions), problem="path_outside_root", detail=path)
    return Record(source, number, list(captions), [full], identities=image_identities(images, full))
