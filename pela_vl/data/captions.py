"""Image-text pairs from ALBEF's lists: `[{"image": path, "caption": text or [texts], "image_id": optional}, ...]`."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pela_vl.data.images import ImageError, ImageReader, resolve_image
from pela_vl.data.text import clean_caption, has_text, swap_sides
from pela_vl.data.transforms import Transform
from pela_vl.errors import UserError

PathLike = str | os.PathLike[str]
Key = tuple[int, int]  # epoch, index: what a sampler asks a training data set for
MAX_REPLACEMENTS = 50  # unreadable entries in a row after which something else is wrong, such as the image root


@dataclass(frozen=True)
class Entry:
    """One checked element of an annotation file; `place` says where it came from, for messages."""

    place: str
    file: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One training pair.

    image: float32 [3, H, W]. image_id: equal for entries that show the same picture. key: the (epoch, index) asked for.
    index: the entry that came, another one than asked for if `bad` is not empty. bad: (path, reason) of the pictures
    that could not be read on the way.
    """

    image: torch.Tensor
    caption: str
    image_id: int
    key: Key
    index: int
    bad: tuple[tuple[str, str], ...] = ()


def load_annotations(
    files: Sequence[PathLike], fields: Mapping[str, tuple[type, ...]], optional: Mapping[str, tuple[type, ...]] = {}
) -> list[Entry]:
    """Read JSON list files one after the other and check the named fields of every element.

    fields: types that each required field may have; `optional` likewise for fields that may be absent. Lists must hold
    strings. Other fields are dropped. Raises `UserError` naming file, index and field; also for a file
    that is absent or no JSON list, and when all files together hold nothing.
    """
    files = [files] if isinstance(files, str | os.PathLike) else list(files)
    entries = []
    for number, file in enumerate(files):
        for index, element in enumerate(_read_list(file)):
            place = f"{os.fspath(file)}: entry {index}"
            if not isinstance(element, dict):
                raise UserError(f"{place}: wants an object with {', '.join(fields)}, got {_kind(element)}")
            absent = [name for name in fields if name not in element]
            if absent:
                raise UserError(f"{place}: field '{absent[0]}' is missing")
            values = {name: element[name] for name in (*fields, *optional) if name in element}
            for name, value in values.items():
                _check_value(f"{place}: field '{name}'", value, fields.get(name) or optional[name])
            entries.append(Entry(place, number, values))
    if not entries:
        raise UserError(f"no entries in {', '.join(map(os.fspath, files)) or 'an empty list of files'}")
    return entries


class CaptionPairs(Dataset):
    """Training pairs for pre-training and retrieval: a pure function of (seed, epoch, index), whatever the workers.

    Of an entry with several captions one is drawn each time. When the transform flips the picture, the words left and
    right change places in the caption. A picture that cannot be read is replaced by the next one that can.
    """

    def __init__(
        self,
        files: Sequence[PathLike],
        image_root: PathLike,
        transform: Transform,
        max_words: int = 30,
        seed: int = 0,
        cache_mb: float = 0,
    ) -> None:
        """cache_mb: MiB of decoded pictures to keep in memory; worth it for small pictures only.

        Raises `UserError` for what is wrong with the files, a path outside `image_root` or a caption without words.
        """
        entries = _load_captions(files, image_root)
        self.images = [entry.values["image"] for entry in entries]
        self.captions = [_as_list(entry.values["caption"]) for entry in entries]
        self.image_ids = _dense_ids(entries)
        self.read = ImageReader(image_root, cache_mb)
        self.transform = transform
        self.max_words = max_words
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_count(self) -> int:
        """Number of different pictures."""
        return max(self.image_ids) + 1

    def __getitem__(self, key: Key) -> Sample:
        """Return the pair for (epoch, index). Raises `UserError` when many pictures in a row cannot be read."""
        epoch, wanted = key
        bad: dict[str, str] = {}
        for step in range(min(len(self), MAX_REPLACEMENTS)):
            index = (wanted + step) % len(self)
            try:
                image = self.read(self.images[index])
            except ImageError as error:
                bad[error.path] = error.reason
                continue
            rng = np.random.default_rng([self.seed, epoch, wanted])
            captions = self.captions[index]
            caption = clean_caption(captions[int(rng.integers(len(captions)))], self.max_words)
            tensor, flipped = self.transform(image, rng)
            caption = swap_sides(caption) if flipped else caption
            return Sample(tensor, caption, self.image_ids[index], (epoch, wanted), index, tuple(bad.items()))
        path, reason = next(iter(bad.items()))
        raise UserError(
            f"{step + 1} entries in a row without a readable image, from {path} ({reason}); check image_root"
        )


class RetrievalEval(Dataset):
    """Pictures and captions of a retrieval test, each picture with one caption or more.

    images: paths below the root, every picture once. texts: T cleaned captions. text2image: int64 [T], the picture of
    each caption. image2texts: for each picture the indices of its captions. An item is a picture, float32 [3, H, W].
    """

    def __init__(
        self, file: PathLike, image_root: PathLike, transform: Transform, max_words: int = 30, cache_mb: float = 0
    ) -> None:
        """Raises `UserError` as `CaptionPairs` does, and for a picture that is absent."""
        self.images: list[str] = []
        self.texts: list[str] = []
        self.image2texts: list[list[int]] = []
        number: dict[str, int] = {}
        owner: list[int] = []
        for entry in _load_captions([file], image_root):
            image = entry.values["image"]
            path = resolve_image(image_root, image)
            if path not in number:
                if not os.path.isfile(path):
                    raise ImageError(path, f"no such file ({entry.place})")
                number[path] = len(self.images)
                self.images.append(image)
                self.image2texts.append([])
            for caption in _as_list(entry.values["caption"]):
                self.image2texts[number[path]].append(len(self.texts))
                owner.append(number[path])
                self.texts.append(clean_caption(caption, max_words))
        self.text2image = np.asarray(owner, dtype=np.int64)
        self.read = ImageReader(image_root, cache_mb)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the picture. Raises `ImageError` when it cannot be read: a test without it would be another test."""
        return self.transform(self.read(self.images[index]), None)[0]


def _load_captions(files: Sequence[PathLike], image_root: PathLike) -> list[Entry]:
    entries = load_annotations(files, {"image": (str,), "caption": (str, list)}, {"image_id": (str, int)})
    for entry in entries:
        try:
            resolve_image(image_root, entry.values["image"])
        except UserError as error:
            raise UserError(f"{entry.place}: field 'image': {error}") from error
        name, captions = entry.values["image"], _as_list(entry.values["caption"])
        if not captions:
            raise UserError(f"{entry.place}: field 'caption': image {name} has no caption; add one or drop the entry")
        for caption in captions:
            if not has_text(caption):
                raise UserError(
                    f"{entry.place}: field 'caption' of image {name}: no word in {caption!r} after cleaning"
                )
    return entries


def _dense_ids(entries: Sequence[Entry]) -> list[int]:
    """Number the pictures from 0: entries agree when their path does, or their `image_id` within one file.

    Ids of different files are not compared, as two data sets may use the same one for different pictures.
    """
    known: dict[tuple[object, ...], int] = {}
    ids, count = [], 0
    for entry in entries:
        keys: list[tuple[object, ...]] = [(os.path.normpath(entry.values["image"]),)]
        if "image_id" in entry.values:
            keys.append((entry.file, str(entry.values["image_id"])))
        number = next((known[key] for key in keys if key in known), count)
        count = max(count, number + 1)
        for key in keys:
            known.setdefault(key, number)
        ids.append(number)
    return ids


def _read_list(file: PathLike) -> list[Any]:
    name = os.fspath(file)
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise UserError(f"{name}: cannot read the annotations: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: line {error.lineno}, column {error.colno}: malformed JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise UserError(f"{name}: malformed JSON: nested too deeply") from error
    if not isinstance(content, list):
        raise UserError(f"{name}: wants a JSON list of entries, got {_kind(content)}")
    return content


def _check_value(place: str, value: Any, types: tuple[type, ...]) -> None:
    # bool is an int to Python, not to a reader of annotations
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        wanted = " or ".join(_NAMES.get(kind, kind.__name__) for kind in types)
        raise UserError(f"{place}: wants {wanted}, got {_kind(value)}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise UserError(f"{place}[{index}]: wants a string, got {_kind(item)}")


def _as_list(caption: str | list[str]) -> list[str]:
    return [caption] if isinstance(caption, str) else caption


_NAMES = {str: "a string", int: "an integer", float: "a number", list: "a list", dict: "an object", bool: "a boolean"}


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)
