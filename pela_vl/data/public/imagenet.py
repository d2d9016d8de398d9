"""ImageNet's classification set (ILSVRC 2012), as downloaded or unpacked, to one folder per class for training and
validation.

The downloads are ILSVRC2012_img_train.tar (one tar per class inside), ILSVRC2012_img_val.tar (images without labels)
and ILSVRC2012_devkit_t12.tar.gz (a class number per validation image, and meta.mat, which maps numbers to synsets).
"""

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pela_vl.base.errors import UserError
from pela_vl.base.progress import Progress
from pela_vl.data.images import ImageError, decode_image
from pela_vl.data.sets.labelled import SUFFIXES

TRAIN_IMAGES, VAL_IMAGES, CLASSES = 1_281_167, 50_000, 1000
_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
_SYNSET = re.compile(r"n\d{8}")
_PART = ".part-"


@dataclass(frozen=True)
class Counted:
    """Number of images by synset, and the paths of empty image files."""

    images: dict[str, int]
    empty: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.images.values())


def read_devkit(path: Path) -> list[str]:
    """The synset of each validation image, in the order of their numbers.

    `path` is the development kit as downloaded, the folder that it was unpacked to, or a text file with one synset per
    line.

    Raises:
        UserError: If the kit lacks one of the two files, or its numbers and synsets do not match.
    """
    if path.is_file() and path.suffix == ".txt":
        synsets = path.read_text(encoding="utf-8").split()
        if wrong := [synset for synset in synsets if not _SYNSET.fullmatch(synset)]:
            raise UserError(
                f"{path}: {wrong[0]!r} is no synset like n01440764; give a synset a line, or the development kit"
            )
        return synsets
    files = _kit_files(path)
    synset_of = _read_meta(path, files[_META])
    labels = files[_TRUTH].decode("ascii", "replace").split()
    unknown = [label for label in labels if not label.isdecimal() or int(label) not in synset_of]
    if unknown or not labels:
        raise UserError(
            f"{path}: {_TRUTH}: {unknown[0] if unknown else 'nothing'} is the number of no class in {_META}"
        )
    return [synset_of[int(label)] for label in labels]


def describe_labels(synsets: list[str]) -> str:
    """Number and digest of the validation images' synsets, which tell two lists apart."""
    return (
        f"{len(synsets)} of digest {hashlib.sha256(' '.join(synsets).encode()).hexdigest()[:16]}" if synsets else "none"
    )


def unpack_train(source: Path, output: Path, report: bool = True) -> None:
    """Create a folder per class from ImageNet's training images.

    A class folder that exists already is left as it is, so the same call resumes after an interruption.

    Args:
        source: ILSVRC2012_img_train.tar, a folder of class folders (these are linked), or a folder of the classes'
            tars.
        output: where the class folders go.
        report: show progress.

    Raises:
        UserError: If `source` is none of these, or a tar is damaged.
    """
    output.mkdir(parents=True, exist_ok=True)
    _remove_parts(output)
    with Progress(None, f"{output.name}: classes", unit="class", enabled=report) as progress:
        if source.is_dir():
            names = sorted(e.name for e in os.scandir(source) if not e.name.startswith("."))
            tars = [name for name in names if _SYNSET.fullmatch(name.removesuffix(".tar")) and name.endswith(".tar")]
            folders = [name for name in names if (source / name).is_dir()]
            if not tars and not folders:
                raise UserError(f"{source}: holds neither a folder a class nor a tar a class")
            for name in folders:
                _link(source / name, output / name)
                progress.update(detail=name)
            for name in tars:
                with open(source / name, "rb") as file:
                    _unpack_class(file, source / name, output / name.removesuffix(".tar"))
                progress.update(detail=name)
            return
        with _opened(source) as outer:
            for member in outer:
                name = Path(member.name).name
                if not member.isfile() or not name.endswith(".tar"):
                    continue
                if not _SYNSET.fullmatch(name.removesuffix(".tar")):
                    raise UserError(f"{source}: holds {member.name}; a tar of tars such as n01440764.tar is wanted")
                folder = output / name.removesuffix(".tar")
                if not folder.exists():
                    _unpack_class(_content(outer, member), source, folder)
                progress.update(detail=name)


def unpack_val(
    source: Path, synsets: list[str], output: Path, classes: Collection[str] | None = None, report: bool = True
) -> int:
    """Create a folder per class from ImageNet's validation images. An existing `output` is left as it is.

    Args:
        source: ILSVRC2012_img_val.tar, a folder of its images (these are linked), or a folder of class folders (linked
            as it is).
        synsets: of images 1, 2, ... (`read_devkit`); empty for a folder of class folders.
        output: where the class folders go; it appears only when complete.
        classes: for a part of ImageNet, the synsets that are wanted. Images of others are left out, and images may be
            absent. None: every image is wanted.
        report: show progress.

    Returns:
        Number of images that were left out.

    Raises:
        UserError: If an image has no label or is absent, none is left, or the tar is damaged.
    """
    if output.exists():
        return 0
    part = output.with_name(_PART + output.name)
    shutil.rmtree(part, ignore_errors=True)
    if source.is_dir() and not any(_VAL_NAME.fullmatch(name) for name in os.listdir(source)):
        unpack_train(source, part, report)
        left = 0 if classes is None else _remove_classes(part, classes)
    else:
        if not synsets:
            raise UserError(f"{source}: these images carry no labels; give the development kit with --devkit")
        left = _sort_val(source, synsets, part, classes, report)
    if classes is not None and not any(part.iterdir()):
        raise UserError(f"{source}: holds no validation image of the {len(classes)} classes of the training images")
    os.rename(part, output)
    return left


def _sort_val(source: Path, synsets: list[str], part: Path, classes: Collection[str] | None, report: bool) -> int:
    """The validation images of a tar or folder to a folder per class, as `unpack_val` says."""
    part.mkdir(parents=True)
    seen, left = set(), 0
    with Progress(len(synsets), f"{part.name.removeprefix(_PART)}: images", unit="image", enabled=report) as progress:
        for name, number, place in _val_images(source):
            if not 1 <= number <= len(synsets) or number in seen:
                raise UserError(f"{source}: {name}: is there twice or has no label; {len(synsets)} labels were given")
            seen.add(number)
            progress.update()
            synset = synsets[number - 1]
            if classes is not None and synset not in classes:
                left += 1
                continue
            (part / synset).mkdir(exist_ok=True)
            if isinstance(place, Path):
                os.symlink(place.resolve(), part / synset / name)
            else:
                with open(part / synset / name, "wb") as file:
                    shutil.copyfileobj(place, file)
    if classes is None and len(seen) != len(synsets):
        absent = next(number for number in range(1, len(synsets) + 1) if number not in seen)
        raise UserError(f"{source}: {len(seen)} images for {len(synsets)} labels; number {absent} is absent")
    return left


def _remove_classes(folder: Path, wanted: Collection[str]) -> int:
    """Remove the folders of all other classes, of a link the link alone. Returns the number of their images."""
    found = count_images(folder).images
    others = [name for name in found if name not in wanted]
    for name in others:
        if (folder / name).is_symlink():
            (folder / name).unlink()
        else:
            shutil.rmtree(folder / name)
    return sum(found[name] for name in others)


def count_images(folder: Path) -> Counted:
    """Count the images of each class folder, and list empty files."""
    images, empty = {}, []
    for name in sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")):
        files = [e for e in os.scandir(folder / name) if os.path.splitext(e.name)[1].lower() in SUFFIXES]
        images[name] = len(files)
        empty += [f"{name}/{e.name}" for e in files if e.stat().st_size == 0]
    return Counted(images, tuple(sorted(empty)))


def check_counts(train: Counted, val: Counted, partial: bool = False) -> None:
    """Check that training and validation images are complete, not empty, and of the same classes.

    Args:
        train: what `count_images` found.
        val: likewise.
        partial: accept any number of images and classes, for a part of ImageNet.

    Raises:
        UserError: Saying what is missing.
    """
    for split, counted, images in (("train", train, TRAIN_IMAGES), ("val", val, VAL_IMAGES)):
        if counted.empty:
            raise UserError(
                f"{split}: {len(counted.empty)} empty files, from {counted.empty[0]}; unpack that class again"
            )
        if not partial and (counted.total != images or len(counted.images) != CLASSES):
            raise UserError(
                f"{split}: {counted.total:,} images of {len(counted.images):,} classes, {images:,} of {CLASSES:,} are"
                " wanted; bring the missing ones, or use --partial for a part of ImageNet"
            )
    if unknown := sorted(val.images.keys() - train.images.keys()):
        raise UserError(f"val: {len(unknown)} classes have no training images, from {unknown[0]}")


def find_rotten(folder: Path, report: bool = True) -> list[tuple[str, str]]:
    """Decode every image below `folder`; return (path below it, reason) of those that cannot be decoded.

    Training skips such images.
    """
    from concurrent.futures import ThreadPoolExecutor

    paths = sorted(
        os.path.join(name, e.name)
        for name in os.listdir(folder)
        if not name.startswith(".")
        for e in os.scandir(folder / name)
        if os.path.splitext(e.name)[1].lower() in SUFFIXES
    )
    rotten = []
    with Progress(len(paths), f"{folder.name}: decode", unit="image", enabled=report) as progress:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
            for start in range(0, len(paths), 4096):
                part = paths[start : start + 4096]
                for path, reason in zip(part, pool.map(lambda p: _why_rotten(folder / p), part), strict=True):
                    if reason:
                        rotten.append((path, reason))
                    progress.update()
    return rotten


def _why_rotten(path: Path) -> str:
    try:
        decode_image(path)
    except ImageError as error:
        return error.reason
    return ""


def _kit_files(path: Path) -> dict[str, bytes]:
    """meta.mat and the validation labels, from the kit's tar or folder."""
    found: dict[str, bytes] = {}
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.name in (_META, _TRUTH):
                found.setdefault(file.name, file.read_bytes())
    else:
        with _opened(path) as kit:
            for member in kit:
                name = Path(member.name).name
                if member.isfile() and name in (_META, _TRUTH):
                    found.setdefault(name, _content(kit, member).read())
    if missing := [name for name in (_META, _TRUTH) if name not in found]:
        raise UserError(f"{path}: holds no {missing[0]}; give ILSVRC2012_devkit_t12.tar.gz or its folder")
    return found


def _read_meta(path: Path, content: bytes) -> dict[int, str]:
    """Number -> synset of the classes. The kit also lists their parent synsets, which have children and are left out."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"reading {_META} needs scipy: pip install 'pela_vl[imagenet]', or give --devkit a text file with the synset of"
            " each validation image"
        ) from None
    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=True)["synsets"]
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        found = {int(number): str(synset) for number, synset, children in rows if int(children) == 0}
    except Exception as error:  # scipy's reader can raise anything for a damaged file
        raise UserError(f"{path}: {_META} cannot be read ({type(error).__name__}: {error})") from None
    if not found:
        raise UserError(f"{path}: {_META} names no class")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar, compressed or not; damage found anywhere in the block is a UserError."""
    try:
        with tarfile.open(path) as tar:
            yield tar
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: no tar file, or a damaged one ({error}); download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be unpacked ({error.strerror or error}); mend that and run again") from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """The content of a regular file in a tar."""
    content = tar.extractfile(member)
    if content is None:
        raise UserError(f"{tar.name!s}: {member.name} is no file; download it again")
    return content


def _unpack_class(file: IO[bytes], place: Path, folder: Path) -> None:
    """Unpack one class's tar; the folder gets its name when all images are there."""
    if folder.exists():
        return
    part = folder.with_name(_PART + folder.name)
    part.mkdir()
    try:
        with tarfile.open(fileobj=file) as tar:
            for member in tar:
                name = Path(member.name).name  # the file name alone, so that no path in the archive leaves the folder
                if member.isfile() and os.path.splitext(name)[1].lower() in SUFFIXES:
                    with open(part / name, "wb") as target:
                        shutil.copyfileobj(_content(tar, member), target)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{place}: {folder.name}: a damaged tar ({error}); download it again") from None
    os.rename(part, folder)


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        os.symlink(source.resolve(), target, target_is_directory=True)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob(_PART + "*"):
        shutil.rmtree(part)


def _val_images(source: Path) -> Iterator[tuple[str, int, Path | IO[bytes]]]:
    """(name, number, path or open file) of the validation images in a folder or a tar."""
    if source.is_dir():
        for name in sorted(os.listdir(source)):
            if found := _VAL_NAME.fullmatch(name):
                yield name, int(found[1]), source / name
        return
    with _opened(source) as tar:
        for member in tar:
            name = Path(member.name).name
            if member.isfile() and (found := _VAL_NAME.fullmatch(name)):
                yield name, int(found[1]), _content(tar, member)
