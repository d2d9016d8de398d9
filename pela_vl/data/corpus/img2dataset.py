"""img2dataset's output: folders or tars of images with .json and .txt files and a parquet table each, or parquet files
with images.

One unit is one of its shards (10,000 images by default). Memory is that of a shard's names and captions.
"""

import importlib.util
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.paths import is_file

from .parquet import CutFile, has_images, parquet_rows
from .records import Record, flickr_identity

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


@dataclass
class _Sample:
    """The files of one key; `place` is the path of a loose image or (tar, offset, bytes)."""

    place: str | tuple[str, int, int] | None = None
    sidecar: Any = None
    text: str | None = None


@dataclass
class _Table:
    """The parquet table of a shard: captions and addresses of downloaded images, and the failed downloads in order."""

    rows: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)


def find_shards(folder: str) -> list[str]:
    """The tars and folders in an output folder, sorted by name; if there are none, its parquet files with images.

    Names that begin with a dot or underscore (`._00000.tar` of macOS) are ignored.

    Raises:
        UserError: If the folder holds none of these.
    """
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names if not name.startswith((".", "_"))]
    shards = [path for path in paths if path.endswith(".tar") or os.path.isdir(path)]
    shards = shards or [path for path in paths if path.endswith(".parquet")]
    if not shards:
        raise UserError(
            f"{folder}: holds no folders, no .tar and no .parquet files; name the folder that img2dataset wrote"
        )
    return shards


def shard_records(source: str, shard: str) -> Iterator[Record]:
    """The images of one shard, then the downloads that failed.

    The id is the key where it begins with the shard's name, as img2dataset's do. Otherwise it is `<shard>/<key>`,
    because other writers number the keys of every shard from 0.

    Raises:
        CutFile: If the file is truncated or damaged.
    """
    stem = os.path.basename(shard).removesuffix(".tar").removesuffix(".parquet")
    records = _parquet_records(source, shard) if shard.endswith(".parquet") else _sample_records(source, shard)
    for record in records:
        whole = os.path.basename(str(record.id)).startswith(stem)
        yield record if whole else replace(record, id=f"{stem}/{record.id}")


def _parquet_records(source: str, shard: str) -> Iterator[Record]:
    if not has_images(shard):
        raise UserError(f"{shard}: holds no images (no column 'jpg'), and no tar or folder lies beside it")
    for row, place in parquet_rows(shard, with_images=True):
        caption = row.get("caption") if row.get("caption") is not None else row.get("txt")
        captions = list(caption) if isinstance(caption, list) else [caption]
        name = str(row["key"])
        if row["there"]:
            identities = flickr_identity(row.get("url"))
            yield Record(source, name, captions, member=(shard, *place), identities=identities)
        else:
            detail = str(row.get("error_message") or row.get("status") or "")
            yield Record(source, name, [None], problem="download_failed", detail=detail)


def _sample_records(source: str, shard: str) -> Iterator[Record]:
    samples = _tar_samples(shard) if shard.endswith(".tar") else _folder_samples(shard)
    table = _read_table(shard.removesuffix(".tar") + ".parquet", needed=_lacks_captions(samples))
    for name, sample in samples.items():
        if sample.place is not None:
            yield _record(source, name, sample, table)
    for name, detail in table.failed:
        if name not in samples:
            yield Record(source, name, [None], problem="download_failed", detail=detail)


def _record(source: str, name: str, sample: _Sample, table: _Table) -> Record:
    sidecar = sample.sidecar if isinstance(sample.sidecar, dict) else {}
    caption, url = table.rows.get(name, (None, None))
    caption = sidecar.get("caption") if caption is None else caption
    caption = sample.text if caption is None else caption
    url = sidecar.get("url") if url is None else url
    return Record(
        source,
        name,
        list(caption) if isinstance(caption, list) else [caption],
        paths=[sample.place] if isinstance(sample.place, str) else [],
        member=None if isinstance(sample.place, str) else sample.place,
        identities=flickr_identity(url),
    )


def _lacks_captions(samples: dict[str, _Sample]) -> bool:
    return any(s.place is not None and s.sidecar is None and s.text is None for s in samples.values())


def _folder_samples(shard: str) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    for name in sorted(os.listdir(shard)):
        path = os.path.join(shard, name)
        stem, _, suffix = name.rpartition(".")
        if stem and not name.startswith(".") and is_file(path):
            _add(samples, stem, suffix.lower(), path, lambda path=path: Path(path).read_bytes())
    return samples


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    assert content is not None  # a regular file has one
    return content.read()


def _tar_samples(shard: str) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    end = 0
    try:
        with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # undeclared; else every header is kept
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(".")
                if member.isreg() and stem:
                    place = (shard, member.offset_data, member.size)
                    _add(samples, os.path.join(folder, stem), suffix.lower(), place,
                         lambda member=member: _content(archive, member))  # fmt: skip
        # tarfile takes a truncated header for the end of the file
        with open(shard, "rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it ends too early")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CutFile(f"{shard}: cannot be read as a tar file ({error})") from None
    return samples


def _add(samples: dict[str, _Sample], name: str, suffix: str, place: Any, read: Any) -> None:
    if suffix not in (*_IMAGE_SUFFIXES, "json", "txt"):
        return
    sample = samples.setdefault(name, _Sample())
    if suffix in _IMAGE_SUFFIXES:
        sample.place = place
    elif suffix == "txt":
        sample.text = read().decode("utf-8", "surrogateescape")
    else:
        try:
            sample.sidecar = json.loads(read().decode("utf-8", "surrogateescape"))
        except ValueError:
            sample.sidecar = {}


def _read_table(path: str, needed: bool) -> _Table:
    """Read a shard's table. `needed`: some captions are only in it, so that a missing pyarrow is an error."""
    table = _Table()
    if not os.path.isfile(path):
        return table
    if not needed and importlib.util.find_spec("pyarrow") is None:
        return table
    for row, _ in parquet_rows(path):
        name = str(row["key"])
        if row.get("status", "success") == "success":
            table.rows[name] = (row.get("caption"), row.get("url"))
        else:
            table.failed.append((name, str(row.get("error_message") or row["status"])))
    return table
