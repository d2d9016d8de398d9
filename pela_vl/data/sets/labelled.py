"""Images with one label each: a folder a class, Tiny-ImageNet's layout, shards, or lists `[{"image": path, "label": class},
...]`.

Classes are numbered in the order of their sorted names, which for ImageNet's synsets is the order of every released
classifier's outputs.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pela_vl.base.errors import UserError
from pela_vl.data.collate import Key, Movable, stack_common
from pela_vl.data.images import ImageReader, check_there, read_or_next
from pela_vl.data.mixing import Mixing, mix_images, mixing_generator
from pela_vl.data.paths import absolute, resolve
from pela_vl.data.raw import reading
from pela_vl.data.sets.annotations import PathLike, check_image, load_annotations
from pela_vl.data.sets.labelled_shards import LabelledShards, ShardImages, is_labelled_shards, read_labelled_shards
from pela_vl.data.transforms import Transform, require_transform

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
TINY_LABELS = "val_annotations.txt"
_STREAM = 0x4D4958  # separates a batch's mixing from the draws of its samples
_MOST_OPEN = 256  # shards that a test set, which is read in the order of its classes, keeps open


@dataclass(frozen=True)
class Labelled:
    """Images and labels. `root` is where the images' paths start; `targets` int64 [n] are indices of `classes`. `shards` is where
    the images lie, None for files.
    """

    root: str
    images: list[str]
    targets: np.ndarray
    classes: tuple[str, ...]
    shards: LabelledShards | None = None


def load_labelled(
    sources: Sequence[PathLike], image_root: PathLike = "", classes: Sequence[str] | None = None
) -> Labelled:
    """Find the images of all sources and their labels; no image is opened.

    Args:
        sources: folders (a sub-folder a class, images anywhere below it; or Tiny-ImageNet's `val`) or JSON lists; or folders of
            shards (`labelled_shards`) alone.
        image_root: where the lists' paths start; not needed for folders.
        classes: names in the order of their numbers, such as the training set's; by default those found, sorted, and
            whole numbers by size.

    Raises UserError naming the source for one without images, a class that is not in `classes`, a class folder without
    images or that cannot be read, a name that is not UTF-8, a mixture of shards and files, for lists what `load_annotations`
    raises, and for shards what `read_labelled_shards` raises.
    """
    shards, found = _packed(sources)
    loose = [] if shards else sources
    folders = [os.fspath(source) for source in loose if os.path.isdir(source)]
    lists = [source for source in loose if not os.path.isdir(source)]
    if lists and not image_root:
        raise UserError(f"{os.fspath(lists[0])}: a list needs the folder of its images: give image_root")
    root = absolute(image_root or (os.path.commonpath([os.path.abspath(f) for f in folders]) if folders else ""))
    for folder in folders:
        base = os.path.relpath(os.path.abspath(folder), root)
        inside = _tiny_val(folder) if os.path.isfile(os.path.join(folder, TINY_LABELS)) else _class_folders(folder)
        found += [(os.path.normpath(os.path.join(base, path)), label, folder) for path, label in inside]
    if lists:
        for entry in load_annotations(lists, {"image": (str,), "label": (str, int)}):
            check_image(entry, root)
            found.append((entry.values["image"], str(entry.values["label"]), entry.place))
    if not found:
        raise UserError("no source of labelled images was given")
    names = {label for _, label, _ in found}
    for kind, text in (*(("class", name) for name in names), *(("image", path) for path, _, _ in found)):
        _check_name(kind, text, root)
    if classes is None:
        numeric = all(name.isdecimal() for name in names)
        classes = sorted(names, key=lambda name: (int(name) if numeric else 0, name))  # 01 before 1
    number = {name: place for place, name in enumerate(classes)}
    for _, label, place in found:
        if label not in number:
            raise UserError(f"{place}: class {label!r} is none of the {len(number)} that the model is trained for")
    targets = np.asarray([number[label] for _, label, _ in found], dtype=np.int64)
    return Labelled(root, [path for path, _, _ in found], targets, tuple(classes), shards)


def _packed(sources: Sequence[PathLike]) -> tuple[LabelledShards | None, list[tuple[str, str, str]]]:
    """Of folders of shards: where their images lie, and (path, label, place for messages) of each."""
    packed = [source for source in sources if is_labelled_shards(source)]
    if not packed:
        return None, []
    if len(packed) < len(sources):
        other = next(source for source in sources if source not in packed)
        raise UserError(
            f"sources name both folders of shards ({os.fspath(packed[0])}) and files ({os.fspath(other)}); put all of them into"
            " shards with data_prep/build_imagenet.py --shards, or none"
        )
    return read_labelled_shards(packed)


def _check_name(kind: str, name: str, root: str) -> None:
    """Refuse what the files of a run, which are UTF-8, could not hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{root}: the name of the {kind} {name!r} is not UTF-8; rename it") from None


def _class_folders(folder: str) -> list[tuple[str, str]]:
    """(path below `folder`, class) of all images, sorted."""
    names = sorted(e.name for e, is_folder in _entries(folder) if is_folder and not e.name.startswith("."))
    found = []
    for name in names:
        inside = sorted(_images_below(folder, name))
        if not inside:
            raise UserError(f"{os.path.join(folder, name)}: a class without images; remove the folder or fill it")
        found += [(path, name) for path in inside]
    if not found:
        raise UserError(f"{folder}: no sub-folder of images a class; give a folder like train/<class>/<image>.jpg")
    return found


def _images_below(folder: str, path: str) -> Iterable[str]:
    here = os.path.join(folder, path)
    for entry, is_folder in _entries(here):
        below = os.path.join(path, entry.name)
        if is_folder:
            if entry.is_symlink() and os.path.join(os.path.realpath(here), "").startswith(
                os.path.join(os.path.realpath(entry.path), "")
            ):
                raise UserError(f"{entry.path}: is a link to a folder that it lies in; remove it")
            yield from _images_below(folder, below)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith("."):
            yield below


def _entries(folder: str) -> list[tuple[os.DirEntry[str], bool]]:
    """What is in a folder, and whether each is a folder too."""
    try:
        return [(entry, entry.is_dir()) for entry in os.scandir(folder)]
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror}); mend or remove it") from None


def _tiny_val(folder: str) -> list[tuple[str, str]]:
    """Of Tiny-ImageNet's `val`: its list names an image in `images`, its class, and a box."""
    file = Path(folder) / TINY_LABELS
    found = []
    with reading(file, "complete the download", "convert it") as stream:
        lines = stream.read().splitlines()
    for number, line in enumerate(lines, 1):
        cells = line.split("\t")
        if len(cells) < 2 or not cells[0] or not cells[1]:
            raise UserError(f"{file}: line {number}: wants an image and a class, parted by a tab")
        path = os.path.join("images", cells[0])
        resolve(folder, path)
        found.append((path, cells[1]))
    if not found:
        raise UserError(f"{file}: names no image")
    return found


@dataclass(frozen=True)
class LabelledSample:
    """One training image. `target` is its class; the other fields are those of `collate.Sample`."""

    image: torch.Tensor
    target: int
    key: Key
    index: int
    bad: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LabelledBatch(Movable):
    """One batch.

    Attributes:
        images: float32 [B, 3, H, W], mixed.
        targets: int64 [B], classes before mixing.
        labels: float32 [B, C], soft.
        indices, replaced, bad: as in `collate.Batch`.
    """

    images: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    replaced: int = 0
    bad: tuple[tuple[str, str], ...] = ()


class LabelledImages(Dataset):
    """Training images: a pure function of (seed, epoch, number), for any number of workers.

    Numbers from `len` on are further views of the same images: `number % len` is the image (see `data/repeated.py`). An
    unreadable image is replaced, with its label, by the next readable one.

    Args:
        labelled: images and labels.
        transform: may be None and set later, as an attribute.
        seed: of augmentation.
        cache_mb: MiB of decoded images to keep in memory, per worker; shards do not use it.

    `order` is that of an epoch, for `EpochSampler`; None is any. `sizes` and `numbers` are those of `LabelledShards`.
    """

    def __init__(self, labelled: Labelled, transform: Transform | None, seed: int = 0, cache_mb: float = 0) -> None:
        self.images, self.targets, self.classes = labelled.images, labelled.targets, labelled.classes
        self.read, self.entries = _reading(labelled, cache_mb)
        self.transform, self.seed = transform, seed
        self.order: Any = None  # of an epoch, where views are repeated or shards read
        self._hint = "check image_root" if labelled.shards is None else "write the shards again"
        if labelled.shards is not None:
            self.order, self.sizes, self.numbers = labelled.shards.order, labelled.shards.sizes, labelled.shards.numbers

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> LabelledSample:
        """The image for (epoch, number). Raises `UserError` when many images in a row cannot be read."""
        epoch, wanted = key
        image, index, bad = read_or_next(self.read, self.entries, wanted % len(self), self._hint)
        tensor, _ = require_transform(self.transform)(image, np.random.default_rng([self.seed, epoch, wanted]))
        return LabelledSample(tensor, int(self.targets[index]), (epoch, wanted), index, bad)


class LabelledCollate:
    """Stack samples and mix them. The mix depends on `seed` and the samples' keys alone."""

    def __init__(self, mixing: Mixing, seed: int = 0) -> None:
        self.mixing, self.seed = mixing, seed

    def __call__(self, samples: Sequence[LabelledSample]) -> LabelledBatch:
        """Make a batch of at least one sample."""
        common = stack_common(samples)
        targets = torch.tensor([sample.target for sample in samples], dtype=torch.int64)
        rng = mixing_generator(self.seed, _STREAM, [sample.key for sample in samples])
        mix = self.mixing.draw(rng, *common["images"].shape[2:])
        mix_images(common["images"], mix)
        return LabelledBatch(targets=targets, labels=self.mixing.labels(targets, mix), **common)


class LabelledEval(Dataset):
    """A test set: every image once. An item is an image, float32 [3, H, W]; `targets` int64 [n]."""

    def __init__(self, labelled: Labelled, transform: Transform) -> None:
        self.images, self.targets, self.classes = labelled.images, labelled.targets, labelled.classes
        self.transform = transform
        self.read, self.entries = _reading(labelled, max_open=_MOST_OPEN)
        if labelled.shards is None:
            for image in self.images:
                check_there(labelled.root, image)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the image. Raises `ImageError` if it cannot be read, since leaving it out would change the test set."""
        return self.transform(self.read(self.entries[index]), None)[0]


def _reading(labelled: Labelled, cache_mb: float = 0, max_open: int = 32) -> tuple[Any, Sequence[Any]]:
    """What reads an image, and the argument for each image.

    Args:
        labelled: images and labels.
        cache_mb: MiB of decoded images of files to keep in memory.
        max_open: shards to keep open.
    """
    if labelled.shards is None:
        return ImageReader(labelled.root, cache_mb), labelled.images
    labels = [labelled.classes[target] for target in labelled.targets]
    return ShardImages(labelled.shards, labelled.images, labels, max_open), range(len(labelled.images))
