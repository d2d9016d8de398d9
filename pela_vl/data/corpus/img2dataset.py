"""What img2dataset leaves: folders or tars of pictures with .json and .txt beside them, and a parquet table of each.

One unit is one of its shards (10,000 pictures unless told otherwise); memory is that of a shard's names and captions.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError

from .records import Record, flickr_identity

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


@dataclass
class _Sample:
    """What lies under one key; `place` is the path of a loose picture or (tar, offset, bytes)."""

    place: str | tuple[str, int, int] | None = None
    sidecar: Any = None
    text: str | None = None


@dataclass
class _Table:
    """The parquet table of a shard: captions and addresses of what was downloaded, and what failed in its order."""

    rows: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)


def find_shards(folder: str) -> list[str]:
    """The tars and folders of an output folder, in the order of their names."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names if not name.startswith((".", "_"))]
    shards = [path for path in paths if path.endswith(".tar") or os.path.isdir(path)]
    if not shards:
        raise UserError(f"{folder}: holds neither folders nor .tar files; name the folder that img2dataset wrote")
    return shards


def shard_records(source: str, shard: str) -> Iterator[Record]:
    """The pictures of one shard, then the downloads that failed."""
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
    loose = isinstance(sample.place, str)
    return Record(
        source,
        name,
        list(caption) if isinstance(caption, list) else [caption],
        paths=[sample.place] if loose else [],
        member=None if loose else sample.place,
        identities=flickr_identity(url),
    )


def _lacks_captions(samples: dict[str, _Sample]) -> bool:
    return any(s.place is not None and s.sidecar is None and s.text is None for s in samples.values())


def _folder_samples(shard: str) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    for name in sorted(os.listdir(shard)):
        path = os.path.join(shard, name)
        stem, _, suffix = name.rpartition(".")
        if stem and os.path.isfile(path):
            _add(samples, stem, suffix.lower(), path, lambda path=path: Path(path).read_bytes())
    return samples


def _tar_samples(shard: str) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    end = 0
    try:
        with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                archive.members = []  # else every header is kept
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(".")
                if member.isreg() and stem:
                    place = (shard, member.offset_data, member.size)
                    _add(samples, os.path.join(folder, stem), suffix.lower(), place,
                         lambda member=member: archive.extractfile(member).read())  # fmt: skip
        # tarfile takes a header that is cut off for the end
        with open(shard, "rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it ends too early")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{shard}: cannot be read as a tar file ({error}); download that shard again") from None
    return samples


def _add(samples: dict[str, _Sample], name: str, suffix: str, place: Any, read: Any) -> None:
    if suffix not in (*_PICTURES, "json", "txt"):
        return
    sample = samples.setdefault(name, _Sample())
    if suffix in _PICTURES:
        sample.place = place
    elif suffix == "txt":
        sample.text = read().decode("utf-8", "surrogateescape")
    else:
        try:
            sample.sidecar = json.loads(read().decode("utf-8", "surrogateescape"))
        except ValueError:
            sample.sidecar = {}


def _read_table(path: str, needed: bool) -> _Table:
    """needed: some pictures have no caption but in the table, so that doing without it is an error."""
    table = _Table()
    if not os.path.isfile(path):
        return table
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError:
        if needed:
            raise UserError(f"{path}: captions in parquet need pyarrow: pip install 'pela_vl[corpus]'") from None
        return table
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [
                name for name in ("key", "caption", "url", "status", "error_message") if name in file.schema.names
            ]
            if "key" not in wanted:
                raise UserError(f"{path}: has no column 'key'; it is no table of img2dataset")
            for batch in file.iter_batches(4096, columns=wanted):
                for row in batch.to_pylist():
                    name = str(row["key"])
                    if row.get("status", "success") == "success":
                        table.rows[name] = (row.get("caption"), row.get("url"))
                    else:
                        table.failed.append((name, str(row.get("error_message") or row["status"])))
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())})") from None
    return table
