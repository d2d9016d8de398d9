"""Shards: tar files of images and their records, in folders that data_prep/build_pretrain_corpus.py (with captions) and
data_prep/build_imagenet.py (with labels) write.

A folder holds `index.json` and `shard-000000.tar`, ...; a sample is two neighbouring members `<key>.jpg` and `<key>.json`. A
sample is named by its number: shards in the order of the index, members in the order of the tar file.
"""

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pela_vl.base.errors import UserError
from pela_vl.base.system import open_to_read, read_at
from pela_vl.data.json_files import read_json
from pela_vl.data.remote import copied, is_remote, size_of
from pela_vl.data.sets.annotations import PathLike
from pela_vl.data.sets.shard_format import BLOCK, FORMAT, INDEX

_CHUNK = 8 * 2**20  # bytes read at a time
_MAX_OPEN = 32  # shards that a process keeps open


@dataclass(frozen=True)
class Shard:
    path: str
    samples: int
    bytes: int


@dataclass(frozen=True)
class Member:
    """One sample of a shard. `name` is the image's, `<shard>/<key>.jpg`, for messages."""

    name: str
    jpeg: bytes
    record: dict[str, Any]


def is_shard_folder(path: PathLike) -> bool:
    """Whether a path in `data.train` means shards: a folder, or an address such as s3://bucket/folder."""
    return os.path.isdir(path) or (is_remote(path) and not os.fspath(path).endswith(".json"))


def read_index(folder: PathLike, script: str = "data_prep/build_pretrain_corpus.py") -> list[Shard]:
    """Read a folder's index and check that its shards are there with the sizes that it says. `script` writes such folders.

    Raises:
        UserError: If the index is absent, damaged or of another format, or a shard is absent or has changed.
    """
    folder = os.fspath(folder).rstrip("/")
    file = f"{folder}/{INDEX}"
    again = f"write it again with {script}"
    index = read_json(file, f"so {folder} is no finished folder of shards; {again}", again)
    try:
        if index["format"] != FORMAT:
            raise UserError(f"{file}: format {index['format']!r}, {FORMAT!r} is wanted; {again}")
        rows = [(str(row["name"]), int(row["samples"]), int(row["bytes"])) for row in index["shards"]]
        total = int(index["samples"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged index ({type(error).__name__}: {error}); {again}") from None
    if not rows or total != sum(samples for _, samples, _ in rows) or any(min(row[1:]) < 1 for row in rows):
        raise UserError(f"{file}: damaged index, its counts do not add up; {again}")
    shards = []
    for name, samples, size in rows:
        if os.path.basename(name) != name:
            raise UserError(f"{file}: shard {name!r} is not a plain file name; {again}")
        path = f"{folder}/{name}"
        found = size_of(path)
        if found is None:
            raise UserError(f"{path}: no such shard, but {INDEX} names it; bring it back or {again}")
        if found != size:
            raise UserError(
                f"{path}: has {found} bytes, {INDEX} says {size}: it was changed or cut; bring it back or {again}"
            )
        shards.append(Shard(path, samples, size))
    return shards


class ShardReader:
    """Reads samples by number. When the first sample of a shard is asked for, the whole shard is read once, front to
    back.

    That pass finds the members, checks the shard against the index, and brings the file into the page cache, from where
    its samples are then read. The disk sees sequential reads only, for any order of numbers within a shard and any
    number of processes. Positions are kept for the last `max_open` shards; image bytes are not kept. A shard at an
    address (s3://, ...) is first copied to an unnamed temporary file, which disappears when the shard is dropped.
    """

    def __init__(self, shards: Sequence[Shard], max_open: int = _MAX_OPEN) -> None:
        self.shards = list(shards)
        self.max_open = max_open
        self.starts = np.concatenate([[0], np.cumsum([shard.samples for shard in self.shards])]).tolist()
        self._open: OrderedDict[int, tuple[int, np.ndarray, list[str]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "max_open": self.max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ShardReader.__init__(self, **state)

    def __del__(self) -> None:
        for handle, _, _ in self.__dict__.get("_open", {}).values():
            os.close(handle)

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, number: int) -> Member:
        """Read a sample. Raises `UserError` for a damaged shard, naming shard and member."""
        index = bisect_right(self.starts, number) - 1
        handle, table, names = self._shard(index)
        row = number - self.starts[index]
        path = self.shards[index].path
        jpeg_at, jpeg_size, record_at, record_size = table[row].tolist()
        name = f"{path}/{names[row]}"
        jpeg, record = read_at(handle, jpeg_size, jpeg_at), read_at(handle, record_size, record_at)
        if len(jpeg) != jpeg_size or len(record) != record_size:
            raise _damaged(path, f"ends before member {names[row]} does")
        try:
            values = json.loads(record)
            if not isinstance(values, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise _damaged(path, f"the record of {names[row]} is not readable ({error})") from None
        return Member(name, jpeg, values)

    def _shard(self, index: int) -> tuple[int, np.ndarray, list[str]]:
        found = self._open.get(index)
        if found is not None:
            self._open.move_to_end(index)
            return found
        while len(self._open) >= self.max_open:
            os.close(self._open.popitem(last=False)[1][0])
        shard = self.shards[index]
        try:
            handle = copied(shard.path) if is_remote(shard.path) else open_to_read(shard.path)
        except FileNotFoundError:
            raise UserError(f"{shard.path}: no such shard, but {INDEX} names it; bring it back") from None
        except OSError as error:
            raise _damaged(shard.path, f"cannot be read ({error.strerror or error})") from None
        try:
            self._open[index] = handle, *scan_shard(shard, handle)
        except BaseException:
            os.close(handle)
            raise
        return self._open[index]


def scan_shard(shard: Shard, handle: int) -> tuple[np.ndarray, list[str]]:
    """Read a shard from front to back; returns where its samples lie, and the names of their images.

    handle: the open file, which is left open. The table is int64 [samples, 4]: position and size of the image, position and
    size of the record. Raises `UserError` for a file that is cut, not the tar file that it is meant to be, or holds another
    number of samples than the index says.
    """
    rows: list[tuple[int, int, int, int]] = []
    names: list[str] = []
    pending: tuple[str, int, int] | None = None  # an image whose record comes next
    try:
        with open(handle, "rb", buffering=0, closefd=False) as file:
            for name, position, size in _members(shard.path, _Stream(file).take):
                key, _, suffix = name.rpartition(".")
                if pending is None and suffix != "json":
                    pending = name, position, size
                elif pending is not None and suffix == "json" and pending[0].rpartition(".")[0] == key:
                    rows.append((pending[1], pending[2], position, size))
                    names.append(pending[0])
                    pending = None
                else:
                    raise _damaged(shard.path, f"member {name}: an image and its record do not stand together")
    except OSError as error:
        raise _damaged(shard.path, f"cannot be read ({error.strerror})") from None
    if pending is not None or len(rows) != shard.samples:
        raise _damaged(shard.path, f"holds {len(rows)} samples, {INDEX} says {shard.samples}")
    return np.asarray(rows, dtype=np.int64), names


class _Stream:
    """Reads or skips bytes of a file in large chunks, strictly forward."""

    def __init__(self, file: Any) -> None:
        self.file, self.chunk, self.at = file, b"", 0

    def take(self, count: int, keep: bool) -> bytes | None:
        """The next bytes, fewer at the end of the file; with `keep` off they are read and dropped (None at the end)."""
        parts: list[bytes] = []
        missing = count
        while missing:
            if self.at == len(self.chunk):
                self.chunk, self.at = self.file.read(_CHUNK), 0
                if not self.chunk:
                    return b"".join(parts) if keep else None
            part = min(missing, len(self.chunk) - self.at)
            if keep:
                parts.append(self.chunk[self.at : self.at + part])
            self.at += part
            missing -= part
        return b"".join(parts)


def _members(path: str, take: Callable[[int, bool], bytes | None]) -> Iterator[tuple[str, int, int]]:
    """(name, position, size) of the regular files of a tar file, whose headers' checksums are checked."""
    position = 0
    while True:
        header = take(BLOCK, True) or b""
        position += BLOCK
        if len(header) < BLOCK:
            raise _damaged(path, "is cut: the end mark of a tar file is missing")
        if not any(header):
            return
        try:
            expected, size = int(header[148:156].strip(b" \0"), 8), int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            expected, size = -1, 0
        # the checksum counts its own eight bytes as blanks
        if sum(header) - sum(header[148:156]) + 8 * 32 != expected:
            raise _damaged(path, f"no tar header at byte {position - BLOCK}")
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        if header[156:157] not in (b"0", b"\0"):
            raise _damaged(path, f"member {name}: type {header[156:157]!r}, plain files are wanted")
        if header[257:262] == b"ustar" and (prefix := header[345:500].rstrip(b"\0")):
            name = f"{prefix.decode('utf-8', 'replace')}/{name}"
        yield name, position, size
        padded = -(-size // BLOCK) * BLOCK
        if take(padded, False) is None:
            raise _damaged(path, f"is cut in member {name}")
        position += padded


def _damaged(path: str, what: str) -> UserError:
    return UserError(f"{path}: {what}: the shard is damaged; bring it back or write the folder again")
