"""What the corpus is written as: ALBEF's JSON lists or webdataset tar shards, by appending alone.

A file's committed length is all that is needed to go on after a kill: what lies beyond is cut off.
"""

import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from pela_vl.base.errors import UserError

from .records import Finding
from .state import State

SHARD_FORMAT = "pela_vl shards 1"
DROPPED = "dropped.jsonl"
INDEX = "index.json"


@dataclass(frozen=True)
class Shards:
    """Tar shards of `samples` pictures each, stored as JPEGs of `quality` whose shorter side is `image_size`."""

    image_size: int = 256
    samples: int = 5000
    quality: int = 95

    def __post_init__(self) -> None:
        if self.image_size < 8 or self.samples < 1 or not 1 <= self.quality <= 100:
            raise UserError(f"{self}: wants image_size >= 8, samples >= 1 and quality from 1 to 100")


class AppendedFiles:
    """Files of one folder that only grow, taken back to their last committed lengths when opened."""

    def __init__(self, folder: Path, state: State) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.state = folder, state
        self.entries = {name: list(entry) for name, entry in state.files().items()}
        self._open: dict[str, IO[bytes]] = {}
        self._changed: set[str] = set()
        for path in folder.iterdir():
            if path.name not in self.entries:
                path.unlink()
        for name, (size, _) in self.entries.items():
            path = folder / name
            if not path.exists() or path.stat().st_size < size:
                raise UserError(f"{path}: has lost content since it was written; remove that folder and begin again")
            if path.stat().st_size > size:
                os.truncate(path, size)

    def append(self, name: str, content: bytes, samples: int = 0) -> None:
        try:
            if name not in self._open:
                self._open[name] = open(self.folder / name, "ab")
            self._open[name].write(content)
        except OSError as error:
            raise _unwritable(self.folder / name, error) from None
        entry = self.entries.setdefault(name, [0, 0])
        entry[0] += len(content)
        entry[1] += samples
        self._changed.add(name)

    def samples(self, name: str) -> int:
        return self.entries.get(name, (0, 0))[1]

    def sync(self) -> None:
        """Bring everything to the disk and into the state, to be committed next."""
        for name in self._changed:
            try:
                self._open[name].flush()
                os.fsync(self._open[name].fileno())
            except OSError as error:
                raise _unwritable(self.folder / name, error) from None
            self.state.set_file(name, *self.entries[name])
        # a shard that is full is not written again
        self.close([name for name in self._open if name not in self._changed])
        self._changed.clear()

    def close(self, names: Iterable[str] | None = None) -> None:
        for name in list(self._open if names is None else names):
            self._open.pop(name).close()


class Writer(Protocol):
    """Adds one admitted finding after the other; `number` counts them from 0 through the whole corpus."""

    def add(self, finding: Finding, number: int) -> None: ...

    def finish(self) -> None: ...


class ListWriter:
    """A JSON list for each source: {"image": path below the root, "caption": text or texts, "image_id": id}."""

    def __init__(self, files: AppendedFiles, image_root: str, sources: Iterable[str]) -> None:
        self.files, self.image_root, self.sources = files, image_root, list(sources)

    def add(self, finding: Finding, number: int) -> None:
        path = os.path.relpath(finding.path, self.image_root)
        entry = {"image": path, "caption": _captions(finding), "image_id": finding.id}
        name = f"{finding.source}.json"
        opening = ",\n" if self.files.samples(name) else "[\n"
        self.files.append(name, (opening + json.dumps(entry)).encode(), samples=1)

    def finish(self) -> None:
        for source in self.sources:
            name = f"{source}.json"
            self.files.append(name, b"\n]\n" if self.files.samples(name) else b"[]\n")


class ShardWriter:
    """shard-000000.tar, ...: `<key>.jpg` and `<key>.json` ({"caption", "image_id", "source"}) one after the other."""

    def __init__(self, files: AppendedFiles, shards: Shards) -> None:
        self.files, self.per_shard = files, shards.samples

    def add(self, finding: Finding, number: int) -> None:
        text = json.dumps({"caption": _captions(finding), "image_id": finding.id, "source": finding.source}).encode()
        key = f"{number:09d}"
        shard = _shard_name(number // self.per_shard)
        self.files.append(shard, _member(f"{key}.jpg", finding.jpeg) + _member(f"{key}.json", text), samples=1)
        if self.files.samples(shard) == self.per_shard:
            self._end(shard)

    def finish(self) -> None:
        last = max((name for name in self.files.entries if name.endswith(".tar")), default=None)
        if last is not None and self.files.samples(last) < self.per_shard:
            self._end(last)

    def _end(self, shard: str) -> None:
        self.files.append(shard, bytes(2 * tarfile.BLOCKSIZE))


def shard_index(files: dict[str, tuple[int, int]], image_size: int) -> dict[str, Any]:
    """Content of index.json for the output files of a finished corpus."""
    shards = [
        {"name": name, "samples": samples, "bytes": size}
        for name, (size, samples) in sorted(files.items())
        if name.endswith(".tar")
    ]
    total = sum(shard["samples"] for shard in shards)
    return {"format": SHARD_FORMAT, "image_size": image_size, "shards": shards, "samples": total}


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _member(name: str, content: bytes) -> bytes:
    member = tarfile.TarInfo(name)  # owner and time stay 0: equal corpora are equal files
    member.size = len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _captions(finding: Finding) -> str | list[str]:
    return finding.captions[0] if len(finding.captions) == 1 else finding.captions


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}); mend that and run again to go on")
