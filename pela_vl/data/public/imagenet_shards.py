"""ImageNet (ILSVRC 2012), as downloaded or unpacked, to tar shards with labels: the images' own bytes, in random order.

Images are copied from the downloads into the shards, without a file for each in between. A shard appears when it is
complete, `labels.json` is written before the first and `index.json` after the last, so that a build that was killed goes
on with the first shard that is absent.
"""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_write, remove_stale
from pela_vl.base.progress import Progress
from pela_vl.base.system import open_to_read, read_at
from pela_vl.data.images import ImageError, decode_image
from pela_vl.data.json_files import read_json
from pela_vl.data.public.imagenet import Counted, check_counts
from pela_vl.data.sets.labelled import SUFFIXES, load_labelled
from pela_vl.data.sets.labelled_shards import LABELS, SCRIPT, labels_content
from pela_vl.data.sets.shard_format import END, INDEX, index_content, sample_members, shard_name
from pela_vl.data.sets.shards import ShardReader, read_index

SAMPLES = 5000  # images of a shard
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
_SYNSET_TAR = re.compile(r"(n\d{8})\.tar")


class Source(NamedTuple):
    """An image of a download: `size` bytes from `start` on of a file. `name` is its path in the layout of folders."""

    label: str
    name: str
    file: str
    start: int
    size: int


def list_train(source: Path, report: bool = True) -> list[Source]:
    """Find the training images in ILSVRC2012_img_train.tar, in a folder of class folders, or in one of the classes' tars.

    Raises:
        UserError: If `source` is none of these, or a tar is compressed or damaged.
    """
    found: list[Source] = []
    with Progress(None, "train: list", unit="class", enabled=report) as progress:
        if source.is_dir():
            entries = sorted(os.scandir(source), key=lambda entry: entry.name)
            tars = [entry.name for entry in entries if _SYNSET_TAR.fullmatch(entry.name)]
            if any(entry.is_dir() and not entry.name.startswith(".") for entry in entries):
                found += _in_folders(source)
            elif not tars:
                raise UserError(f"{source}: holds neither a folder a class nor a tar a class")
            for name in tars:
                with _plain_tar(source / name) as tar:
                    found += _in_class(tar, str(source / name), 0, name.removesuffix(".tar"))
                progress.update(detail=name)
        else:
            with _plain_tar(source) as outer:
                for member in outer:
                    name = Path(member.name).name
                    if not member.isfile() or not name.endswith(".tar"):
                        continue
                    if not _SYNSET_TAR.fullmatch(name):
                        raise UserError(f"{source}: holds {member.name}; a tar of tars such as n01440764.tar is wanted")
                    with _plain_tar(source, name, outer.extractfile(member)) as tar:
                        found += _in_class(tar, str(source), member.offset_data, name.removesuffix(".tar"))
                    progress.update(detail=name)
    return _sorted(source, found)


def list_val(source: Path, synsets: Sequence[str], partial: bool = False) -> list[Source]:
    """Find the validation images in ILSVRC2012_img_val.tar, in a folder of its images, or in a folder of class folders.

    Args:
        source: where they are.
        synsets: of images 1, 2, ... (`read_devkit`); empty for a folder of class folders.
        partial: images may be absent.

    Raises:
        UserError: If an image has no label or is absent, or the tar is compressed or damaged.
    """
    if source.is_dir() and not any(_VAL_NAME.fullmatch(name) for name in os.listdir(source)):
        return list_train(source, report=False)
    if not synsets:
        raise UserError(f"{source}: these images carry no labels; give the development kit with --devkit")
    seen: dict[int, Source] = {}
    for name, file, start, size in _val_files(source):
        match = _VAL_NAME.fullmatch(name)
        if match is None:
            continue
        number = int(match[1])
        if not 1 <= number <= len(synsets) or number in seen:
            raise UserError(f"{source}: {name}: is there twice or has no label; {len(synsets)} labels were given")
        synset = synsets[number - 1]
        seen[number] = Source(synset, f"{synset}/{name}", file, start, size)
    if not partial and len(seen) != len(synsets):
        absent = next(number for number in range(1, len(synsets) + 1) if number not in seen)
        raise UserError(f"{source}: {len(seen)} images for {len(synsets)} labels; number {absent} is absent")
    return _sorted(source, seen.values())


def list_splits(
    train: Path, val: Path, synsets: Sequence[str], partial: bool = False, report: bool = True
) -> tuple[list[Source], list[Source], int]:
    """Find the images of both splits and check their counts.

    Args:
        train: see `list_train`.
        val: see `list_val`.
        synsets: of the validation images.
        partial: accept any number of images and classes, for a part of ImageNet. Validation images of classes without training
            images are left out.
        report: show progress.

    Returns:
        Images of train, images of val, and how many of val were left out.

    Raises:
        UserError: As `list_train`, `list_val` and `imagenet.check_counts`.
    """
    images = list_train(train, report)
    counted = _count(images)
    tests = list_val(val, synsets, partial)
    wanted = [image for image in tests if image.label in counted.images] if partial else tests
    if not wanted:
        raise UserError(f"{val}: holds no validation image of the {len(counted.images)} classes of the training images")
    check_counts(counted, _count(wanted), partial)
    return images, wanted, len(tests) - len(wanted)


def write_shards(images: Sequence[Source], folder: Path, samples: int = SAMPLES, report: bool = True) -> None:
    """Copy images into shards. The same call goes on after an interruption, and does nothing once all is there.

    Args:
        images: of one split, as `list_train` and `list_val` give them.
        folder: where the shards go.
        samples: images of a shard at most.
        report: show progress.

    Raises:
        UserError: If the folder holds shards of other images, or the disk refuses.
    """
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.array_split(order, -(-len(images) // samples))
    labels = labels_content([(images[place].label, images[place].name) for place in order])
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    if not (folder / LABELS).exists():
        atomic_json(folder / LABELS, labels, indent=None)
    elif read_json(folder / LABELS) != labels:
        raise UserError(f"{folder}: holds shards of other images; choose another output, or remove that folder")
    shards = [(folder / shard_name(number), part) for number, part in enumerate(parts)]
    done = sum(len(part) for path, part in shards if path.exists())
    with Progress(len(images), f"{folder.name}: shards", initial=done, unit="image", enabled=report) as progress:
        for path, part in shards:
            if path.exists():
                continue
            with atomic_write(path) as file:
                for place in part.tolist():
                    image = images[place]
                    record = {"label": image.label, "image": image.name}
                    file.write(sample_members(f"{place:09d}", _content(image), record))
                    progress.update(detail=path.name)
                file.write(END)
    rows = [(path.name, len(part), path.stat().st_size) for path, part in shards]
    atomic_json(folder / INDEX, index_content(rows, 0))


def find_rotten(folder: Path, report: bool = True) -> list[tuple[str, str]]:
    """Decode every image of a folder of shards; return (name, reason) of those that cannot be decoded."""
    from concurrent.futures import ThreadPoolExecutor

    reader = ShardReader(read_index(folder, SCRIPT), max_open=1)
    rotten = []
    with Progress(len(reader), f"{folder.name}: decode", unit="image", enabled=report) as progress:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
            for start in range(0, len(reader), 256):
                members = [reader.read(number) for number in range(start, min(start + 256, len(reader)))]
                for member, reason in zip(members, pool.map(_why_rotten, [m.jpeg for m in members]), strict=True):
                    if reason:
                        rotten.append((str(member.record.get("image")), reason))
                progress.update(len(members))
    return sorted(rotten)


def _count(images: Sequence[Source]) -> Counted:
    labels, numbers = np.unique([image.label for image in images], return_counts=True)
    empty = tuple(image.name for image in images if not image.size)
    return Counted(dict(zip(labels.tolist(), numbers.tolist(), strict=True)), empty)


def _why_rotten(content: bytes) -> str:
    try:
        decode_image("", content)
    except ImageError as error:
        return error.reason
    return ""


def _sorted(source: Path, images: Iterable[Source]) -> list[Source]:
    """In the order of classes, then names; of two images of one name the last counts, as where tars are unpacked."""
    found = {(image.label, image.name): image for image in images}
    if not found:
        raise UserError(f"{source}: holds no image")
    for _, name in found:
        if not name.isascii() and name != name.encode(errors="replace").decode():  # half a surrogate pair
            raise UserError(f"{source}: the name of the image {name!r} is not UTF-8; rename it")
    return sorted(found.values())


def _in_folders(source: Path) -> list[Source]:
    found = load_labelled([source])
    root = Path(found.root)
    return [
        Source(found.classes[target], name.replace(os.sep, "/"), str(root / name), 0, os.path.getsize(root / name))
        for name, target in zip(found.images, found.targets.tolist(), strict=True)
    ]


def _in_class(tar: tarfile.TarFile, file: str, start: int, synset: str) -> Iterator[Source]:
    """The images of a class's tar, which itself begins at byte `start` of `file`."""
    for member in tar:
        name = Path(member.name).name
        if member.isfile() and os.path.splitext(name)[1].lower() in SUFFIXES:
            yield Source(synset, f"{synset}/{name}", file, start + member.offset_data, member.size)


def _val_files(source: Path) -> Iterator[tuple[str, str, int, int]]:
    """(name, file, start, size) of what a folder or a tar holds."""
    if source.is_dir():
        for entry in os.scandir(source):
            yield entry.name, entry.path, 0, entry.stat().st_size
        return
    with _plain_tar(source) as tar:
        for member in tar:
            if member.isfile():
                yield Path(member.name).name, str(source), member.offset_data, member.size


@contextmanager
def _plain_tar(path: Path, inner: str = "", file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Open a tar that is not compressed, so that its members are bytes of the file; damage is a UserError.

    Args:
        path: of the file.
        inner: name of a tar inside, for messages.
        file: that tar's content; None: open `path`.
    """
    where = f"{path}: {inner}" if inner else f"{path}"
    try:
        with tarfile.open(path, "r:", fileobj=file) as tar:
            yield tar
    except FileNotFoundError:
        raise UserError(f"{where}: no such file or folder") from None
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{where}: no tar file, a compressed one, or a damaged one ({error}); download it again, or decompress it"
        ) from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error}); mend that and run again") from None


def _content(image: Source) -> bytes:
    try:
        handle = open_to_read(image.file)
        try:
            content = read_at(handle, image.size, image.start)
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"{image.file}: cannot be read ({error.strerror or error}); mend that and run again to go on"
        ) from None
    if len(content) != image.size:
        raise UserError(f"{image.file}: ends before image {image.name} does; it was changed: run again to go on")
    return content
