"""Labelled images from folders of shards, which data_prep/build_imagenet.py writes with --shards.

Beside the index and the shards such a folder holds `labels.json`: {"classes": names, "targets": indices of `classes`,
"images": names}, the last two in the order of the samples. With it no shard is read to find the labels. A sample's record,
{"label": class, "image": name}, says the same and is compared when the image is read.

Images are numbered as those of the folder a class that they came from. Their places in the shards are random, so that a
shard holds images of all classes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pela_vl.base.errors import UserError
from pela_vl.data.images import decode_image
from pela_vl.data.json_files import read_json
from pela_vl.data.remote import is_remote
from pela_vl.data.sets.annotations import PathLike
from pela_vl.data.sets.shard_format import INDEX, shard_name
from pela_vl.data.sets.shard_order import epoch_order
from pela_vl.data.sets.shards import Shard, ShardReader, is_shard_folder, read_index

LABELS = "labels.json"
SCRIPT = "data_prep/build_imagenet.py --shards"
_AGAIN = f"write it again with {SCRIPT}"


@dataclass(frozen=True)
class LabelledShards:
    """Where numbered images lie. `places` int64 [n] are their samples' numbers among those of all `shards`."""

    shards: tuple[Shard, ...]
    places: np.ndarray

    @property
    def sizes(self) -> list[int]:
        """Samples of each shard."""
        return [shard.samples for shard in self.shards]

    @property
    def numbers(self) -> np.ndarray:
        """The image at each place, int64 [n]."""
        return np.argsort(self.places)

    def order(self, seed: int, epoch: int, batch: int) -> np.ndarray:
        """The images' numbers in the order of an epoch, in which few shards are read at a time: see `epoch_order`.

        Args:
            seed: of the run.
            epoch: from 0.
            batch: samples of a global batch.
        """
        return self.numbers[epoch_order(self.sizes, seed, epoch, batch)]


class ShardImages:
    """Reads images by number.

    Args:
        places: where the images lie.
        names: of the images; a record's name is the end of it.
        labels: class of each image.
        max_open: shards that a process keeps open.
    """

    def __init__(self, places: LabelledShards, names: Sequence[str], labels: Sequence[str], max_open: int = 32) -> None:
        self.reader = ShardReader(places.shards, max_open)
        self.places, self.names, self.labels = places.places, names, labels

    def __call__(self, number: int) -> Image.Image:
        """Read an image. Raises `ImageError` for one that cannot be decoded, `UserError` for a damaged shard."""
        member = self.reader.read(int(self.places[number]))
        label, image = member.record.get("label"), member.record.get("image")
        if label != self.labels[number] or not isinstance(image, str) or not self.names[number].endswith(image):
            raise UserError(
                f"{member.name}: is {image!r} of class {label!r}, but {LABELS} says {self.names[number]!r} of class"
                f" {self.labels[number]!r}: shards of two folders are mixed; bring the right ones back or {_AGAIN}"
            )
        return decode_image(member.name, member.jpeg).image


def is_labelled_shards(path: PathLike) -> bool:
    """Whether a source of labelled images means shards: a folder with a first shard, or with index and labels; or an address
    of a folder.
    """
    if is_remote(path):
        return is_shard_folder(path)
    there = [os.path.isfile(os.path.join(path, name)) for name in (shard_name(0), INDEX, LABELS)]
    return there[0] or all(there[1:])


def read_labelled_shards(folders: Sequence[PathLike]) -> tuple[LabelledShards, list[tuple[str, str, str]]]:
    """Read the indices and labels of shard folders, one folder after the other; no shard is read.

    Returns:
        Where the images lie, and (name, class, folder) of each. A folder's images come in the order of their classes' names,
        then of their own. Where there are several folders, an image's name begins with its folder's.

    Raises:
        UserError: If an index or the labels are absent or damaged, or a shard is absent or has another size.
    """
    shards: list[Shard] = []
    places: list[int] = []
    found: list[tuple[str, str, str]] = []
    for folder in folders:
        name = os.fspath(folder).rstrip("/")
        here = read_index(name, SCRIPT)
        images, labels = _read_labels(f"{name}/{LABELS}", sum(shard.samples for shard in here))
        order = sorted(range(len(images)), key=lambda place: (labels[place], images[place]))
        places += [len(places) + place for place in order]
        shards += here
        prefix = f"{name}/" if len(folders) > 1 else ""
        found += [(prefix + images[place], labels[place], name) for place in order]
    return LabelledShards(tuple(shards), np.asarray(places, dtype=np.int64)), found


def labels_content(images: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Content of `labels.json` for (class, name) of the samples in their order."""
    classes = sorted({label for label, _ in images})
    number = {label: place for place, label in enumerate(classes)}
    return {
        "classes": classes,
        "targets": [number[label] for label, _ in images],
        "images": [name for _, name in images],
    }


def _read_labels(file: str, samples: int) -> tuple[list[str], list[str]]:
    """(names, classes) of the samples."""
    content = read_json(file, f"its folder holds shards without labels; for image classification {_AGAIN}", _AGAIN)
    try:
        classes, targets, images = content["classes"], content["targets"], content["images"]
        labels = [classes[target] for target in targets]
        if min(targets) < 0 or not all(isinstance(name, str) for name in (*classes, *images)):
            raise ValueError("names or numbers of the wrong type")
        if not len(images) == len(labels) == samples:
            raise ValueError(f"{len(images)} images and {len(labels)} labels, {INDEX} says {samples}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{file}: damaged labels ({type(error).__name__}: {error}); {_AGAIN}") from None
    return images, labels
