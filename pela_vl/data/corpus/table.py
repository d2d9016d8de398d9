"""Tables of captions with the address or the path of a picture: Conceptual Captions, SBU, own data; TSV or CSV."""

import csv
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

from pela_vl.base.errors import UserError
from pela_vl.data.images import resolve_image

from .records import Record, flickr_identity

_SUFFIXES = ("jpg", "png", "webp")
# names that a first line may give to the columns
_HEADERS = {
    "caption": ("caption", "text", "title", "sentence"),
    "url": ("url", "image_url"),
    "path": ("image", "path", "filepath", "file", "filename", "file_name"),
}


def table_records(source: str, table: str, images: str) -> Iterator[Record]:
    """A record for each row; its id is the row's number from 0, a first line of column names not counted.

    A row has an address and a caption, in either order, or what the first line names: url or image, and caption. Of
    consecutive rows with equal `image` one record is made. Bytes that are no UTF-8 stay as lone surrogates.
    """
    try:
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _merged(_records(source, table, file, images))
    except OSError as error:
        raise UserError(f"{table}: cannot be read: {error.strerror or error}") from None


def _records(source: str, table: str, file: IO[str], images: str) -> Iterator[Record]:
    columns: dict[str, int] | None = None
    number = 0
    for line, row in enumerate(_rows(table, file)):
        if not row or row == [""]:
            continue
        if line == 0 and (columns := _columns(row)):
            if "caption" not in columns or len(columns) < 2:
                raise UserError(f"{table}: the first line names no caption, or neither url nor image: {', '.join(row)}")
            continue
        yield _record(source, number, row, columns, images)
        number += 1


def _rows(table: str, file: IO[str]) -> Iterator[list[str]]:
    if table.lower().endswith(".csv"):
        csv.field_size_limit(sys.maxsize)
        rows = csv.reader(file)
        while True:
            try:
                yield next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield ["", ""]  # neither address nor caption: counted as malformed
    # a TSV of Conceptual Captions has no quoting: a quotation mark is one
    for line in file:
        yield line.rstrip("\r\n").split("\t")


def _columns(row: list[str]) -> dict[str, int] | None:
    """Which column is what, if this row is a line of names."""
    names = [cell.strip().lower() for cell in row]
    found = {key: names.index(name) for key, known in _HEADERS.items() for name in known if name in names}
    return found or None


def _record(source: str, number: int, row: list[str], columns: dict[str, int] | None, images: str) -> Record:
    if columns is None:
        address = next((place for place, cell in enumerate(row[:2]) if _is_address(cell)), None)
        if address is None or len(row) < 2:
            return Record(source, number, [None], problem="malformed_entry", detail="wants an address and a caption")
        columns = {"url": address, "caption": 1 - address}
    if len(row) <= max(columns.values()):
        return Record(source, number, [None], problem="malformed_entry", detail=f"has {len(row)} columns")
    caption = row[columns["caption"]]
    url = row[columns["url"]].strip() if "url" in columns else None
    if "path" in columns:
        name = row[columns["path"]]
        try:
            path = resolve_image(images, name)
        except UserError:
            return Record(source, number, [caption], problem="path_outside_root", detail=name)
        identities = [f"name:{PurePosixPath(name).stem}", *flickr_identity(url)]
        return Record(source, number, [caption], [path], identities=identities)
    return Record(source, number, [caption], row=(images, number), identities=flickr_identity(url), url=url)


def downloaded_names(number: int, url: str) -> Iterable[str]:
    """The names that downloaders give: img2dataset's, the row's number, number and checksum, the address's last part."""
    for suffix in _SUFFIXES:
        yield f"{number // 10000:05d}/{number:09d}.{suffix}"
    yield f"{number:09d}.jpg"
    yield f"{number}.jpg"
    yield f"{number}_{zlib.crc32(url.encode('utf-8', 'surrogateescape'))}"
    last = PurePosixPath(unquote(_path(url))).name
    if last and "\0" not in last and last != "..":
        yield last


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:  # such as half an IPv6 address
        return ""


def _is_address(cell: str) -> bool:
    return cell.strip().lower().startswith(("http://", "https://"))


def _merged(records: Iterable[Record]) -> Iterator[Record]:
    """Join rows that follow one another with the same picture by path: several captions of one picture."""
    last: Record | None = None
    for record in records:
        same = last is not None and last.problem is record.problem is None and last.url is record.url is None
        if same and last.paths == record.paths:
            last.captions.extend(record.captions)
            continue
        if last is not None:
            yield last
        last = record
    if last is not None:
        yield last
