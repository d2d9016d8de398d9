"""Writers of the corpus: ALBEF's JSON lists or webdataset tar shards. Files are only appended to.

The committed length of each file is enough to resume after a kill: bytes beyond it are cut off.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Protocol

from pela_vl.base.errors import UserError
from pela_vl.data.sets.shard_format import END, index_content, sample_members, shard_name

from .records import Finding
from .settings import Shards
from .state import State

DROPPED = "dropped.jsonl"


class AppendedFiles:
    """Files of one folder that only grow. When opened they are truncated to their last committed lengths."""

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
        """Append bytes to a file; they count once `sync` has run and the state is committed.

        Args:
            name: of the file in the folder; created on first use.
            content: the bytes.
            samples: number of samples in `content`, for the index and the report.

        Raises:
            UserError: If the disk refuses.
        """
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
        """Flush everything to the disk and record the lengths in the state, to be committed next."""
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
    """Writes admitted findings one by one; `number` counts them from 0 through the whole corpus."""

    def add(self, finding: Finding, number: int) -> None: ...

    def end_files(self) -> None: ...


class ListWriter:
    """A JSON list for each source: {"image": path below the root, "caption": text or texts, "image_id": id}.

    Args:
        files: of the corpus.
        image_root: where the paths start.
        sources: names of the lists; one is written even if it stays empty.
    """

    def __init__(self, files: AppendedFiles, image_root: str, sources: Iterable[str]) -> None:
        self.files, self.image_root, self.sources = files, image_root, list(sources)
        self._start = os.path.join(os.path.normpath(image_root), "")

    def add(self, finding: Finding, number: int) -> None:
        path = os.path.normpath(finding.path)
        below = path.startswith(self._start)
        path = path.removeprefix(self._start) if below else os.path.relpath(path, self.image_root)
        entry = {"image": path, "caption": _captions(finding), "image_id": finding.id}
        name = f"{finding.source}.json"
        opening = ",\n" if self.files.samples(name) else "[\n"
        self.files.append(name, (opening + json.dumps(entry)).encode(), samples=1)

    def end_files(self) -> None:
        for source in self.sources:
            name = f"{source}.json"
            self.files.append(name, b"\n]\n" if self.files.samples(name) else b"[]\n")


class ShardWriter:
    """Writes shards in the format of `shard_format`. `shards.open` of them are filled at a time, chosen for each sample
    by a hash.

    The shard of a sample depends on its number alone, so the files are byte-identical for any number of workers.
    """

    def __init__(self, files: AppendedFiles, shards: Shards) -> None:
        self.files, self.shards = files, shards
        # the shard being filled at each place; its number is congruent to the place modulo `shards.open`
        self.current = list(range(shards.open))
        for name in files.entries:
            if name.endswith(".tar"):
                number = int(name.removeprefix("shard-").removesuffix(".tar"))
                place = number % shards.open
                self.current[place] = max(self.current[place], number)

    def add(self, finding: Finding, number: int) -> None:
        record = {"caption": _captions(finding), "image_id": finding.id, "source": finding.source}
        place = int.from_bytes(hashlib.blake2b(str(number).encode(), digest_size=4).digest(), "big") % self.shards.open
        if self.files.samples(shard_name(self.current[place])) == self.shards.samples:
            self.files.append(shard_name(self.current[place]), END)
            self.current[place] += self.shards.open
        shard = shard_name(self.current[place])
        assert finding.jpeg is not None  # images for shards were resized when they were examined
        self.files.append(shard, sample_members(f"{number:09d}", finding.jpeg, record), samples=1)

    def end_files(self) -> None:
        for number in self.current:
            if self.files.samples(shard_name(number)):
                self.files.append(shard_name(number), END)


def final_names(files: dict[str, tuple[int, int]]) -> dict[str, str]:
    """The published name of each output file: shards are numbered without gaps."""
    shards = sorted(name for name in files if name.endswith(".tar"))
    return {name: name for name in files} | {name: shard_name(number) for number, name in enumerate(shards)}


def shard_index(files: dict[str, tuple[int, int]], image_size: int) -> dict[str, Any]:
    """Content of index.json for the published files of a finished corpus."""
    shards = [(name, samples, size) for name, (size, samples) in sorted(files.items()) if name.endswith(".tar")]
    return index_content(shards, image_size)


def _captions(finding: Finding) -> str | list[str]:
    return finding.captions[0] if len(finding.captions) == 1 else finding.captions


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error}); mend that and run again to go on")
