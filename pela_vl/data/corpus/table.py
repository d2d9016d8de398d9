"""Tables of captions with the address or the path of an image: Conceptual Captions, SBU, own data; TSV or CSV."""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from pela_vl.base.errors import UserError
from pela_vl.data.paths import resolve
from pela_vl.data.rows import Row, read_rows

from .records import Record, flickr_identity, image_identities

_SUFFIXES = ("jpg", "png", "webp")
# accepted column names in a header
_HEADERS = {
    "caption": ("caption", "text", "title", "sentence"),
    "url": ("url", "image_url"),
    "path": ("image", "path", "filepath", "file", "filename", "file_name"),
}


def table_records(source: str, table: str, images: str) -> Iterator[Record]:
    """One record per row; its id is the row's number from 0, a first line of column names not counted.

    A row is an address and a caption, in either order, or what the first line names: url or image, and caption.
    Consecutive rows with equal `image` become one record. Bytes that are not UTF-8 are kept as lone surrogates. A
    malformed row is a record too, whose detail names its line.

    Args:
        source: the source's name, stored in the records.
        table: path of the TSV or CSV file.
        images: folder of the images.

    Raises:
        UserError: If the file cannot be read, or its first line names columns but no caption or no image.
    """
    yield from _merged(_records(source, table, images))


def _records(source: str, table: str, images: str) -> Iterator[Record]:
    names: dict[str, int] | None = None
    count = 0  # columns that the header names
    number = 0
    for place, row in enumerate(read_rows(table)):
        if place == 0 and (names := _columns(row.cells)):
            if "caption" not in names or len(names) < 2:
                raise UserError(
                    f"{table}: the first line names no caption, or neither url nor image: {', '.join(row.cells)}"
                )
            count = len(row.cells)
            continue
        problem = row.problem or _count_problem(row.cells, count)
        if problem:
            yield Record(source, number, [None], problem="malformed_entry", detail=f"line {row.line}: {problem}")
        else:
            yield _record(source, number, row, names, images)
        number += 1


def _count_problem(cells: list[str], count: int) -> str:
    """Why these cells are not what the first line names, or without one not an address and a caption."""
    if count:
        return f"{len(cells)} cells for {count} columns" if len(cells) > count else ""
    # published tables with labels have further columns after caption and address
    if len(cells) > 2 and not _is_address(cells[1]):
        return f"{len(cells)} cells; an address and a caption are wanted"
    return ""


def _columns(row: list[str]) -> dict[str, int] | None:
    """Which column is what, if this row is a line of names."""
    names = [cell.strip().lower() for cell in row]
    found = {key: names.index(name) for key, known in _HEADERS.items() for name in known if name in names}
    return found or None


def _record(source: str, number: int, whole: Row, columns: dict[str, int] | None, images: str) -> Record:
    row = whole.cells
    if columns is None:
        address = next((place for place, cell in enumerate(row[:2]) if _is_address(cell)), None)
        if address is None or len(row) < 2:
            detail = f"line {whole.line}: wants an address and a caption"
            return Record(source, number, [None], problem="malformed_entry", detail=detail)
        columns = {"url": address, "caption": 1 - address}
    if len(row) <= max(columns.values()):
        return Record(
            source, number, [None], problem="malformed_entry", detail=f"line {whole.line}: {len(row)} columns"
        )
    caption = row[columns["caption"]]
    url = row[columns["url"]].strip() if "url" in columns else None
    if "path" in columns:
        name = row[columns["path"]]
        try:
            path = resolve(images, name)
        except UserError:
            return Record(source, number, [caption], problem="path_outside_root", detail=name)
        identities = [*image_identities(images, path), *flickr_identity(url)]
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
    """Join rows that follow one another with the same image by path: several captions of one image."""
    last: Record | None = None
    for record in records:
        plain = record.problem is None and record.url is None
        if plain and last is not None and last.problem is last.url is None and last.paths == record.paths:
            last.captions.extend(record.captions)
            continue
        if last is not None:
            yield last
        last = record
    if last is not None:
        yield last
