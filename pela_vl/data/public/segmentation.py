"""Images with label images as downloaded, to lists: ADE20K's challenge folder, CamVid's, and any two folders that pair.

A list is `[{"image": path, "labels": path}, ...]`; beside the lists stands the file of classes (see `data/label_images.py`).
"""

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_path
from pela_vl.base.progress import Progress
from pela_vl.data.images import ImageError
from pela_vl.data.label_images import LabelValues, read_label_image
from pela_vl.data.raw import reading, write_list
from pela_vl.data.sets.labelled import SUFFIXES
from pela_vl.data.sets.segmentation import Pair, PairReader

ADE_TRAIN, ADE_VAL, ADE_CLASSES = 20_210, 2_000, 150
ADE_SPLITS = {"train": "training", "val": "validation"}
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist"
)  # fmt: skip
CAMVID_VOID = (11, 255)
_INFO = "objectInfo150.txt"
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Found:
    """root: what paths are relative to. splits: pairs by split's name."""

    root: Path
    splits: Mapping[str, Sequence[Pair]]
    values: LabelValues


def find_ade(folder: Path, partial: bool = False) -> Found:
    """ADEChallengeData2016, unpacked, or any folder of its layout.

    Args:
        folder: With images/, annotations/ and objectInfo150.txt.
        partial: Take other counts than the challenge's.

    Raises:
        UserError: For images without labels, labels without images, or other counts.
    """
    names = _ade_names(folder / _INFO)
    values = LabelValues(tuple(names), tuple(range(1, len(names) + 1)), (0,))
    splits = {
        split: pair_folders(folder, f"images/{name}", f"annotations/{name}") for split, name in ADE_SPLITS.items()
    }
    counts = (len(splits["train"]), len(splits["val"]), len(names))
    if counts != (ADE_TRAIN, ADE_VAL, ADE_CLASSES) and not partial:
        raise UserError(
            f"{folder}: {counts[0]:,} images for training and {counts[1]:,} for validation of {counts[2]} classes, ADE20K has "
            f"{ADE_TRAIN:,}, {ADE_VAL:,} and {ADE_CLASSES}; complete the download, or give --partial"
        )
    return Found(folder, splits, values)


def find_camvid(folder: Path) -> Found:
    """CamVid as SegNet's authors gave it out: train/, trainannot/, val/, valannot/, test/, testannot/; 11 classes, 11 is void."""
    splits = {
        split: pair_folders(folder, split, f"{split}annot")
        for split in ("train", "val", "test")
        if (folder / split).is_dir()
    }
    if "train" not in splits:
        raise UserError(f"{folder}: has no train/ and trainannot/, which CamVid's folder has")
    return Found(folder, splits, LabelValues(CAMVID_CLASSES, tuple(range(len(CAMVID_CLASSES))), CAMVID_VOID))


def find_pairs(
    images: Path, labels: Path, suffix: str = "", names: Sequence[str] = (), ignored: Sequence[int] = ()
) -> Found:
    """Any folder of images and one of label images that have the same names below it.

    Sub-folders train (training), val (valid, validation) and test are splits; without them all is "train". The values of all
    label images are read; each that is not ignored is a class.

    Args:
        images: Folder.
        labels: Folder.
        suffix: What a label image's name has after the image's, such as "_P".
        names: Of the classes in the order of their values; empty for "class 7" and so on.
        ignored: Values of unlabelled pixels.

    Raises:
        UserError: For images without labels or labels without images, and if there are not as many names as values.
    """
    root = Path(os.path.commonpath([images.resolve(), labels.resolve()]))
    image_folder, label_folder = (str(folder.resolve().relative_to(root)) for folder in (images, labels))
    pairs = pair_folders(root, image_folder, label_folder, suffix)
    splits: dict[str, list[Pair]] = {}
    folders = [_first_folder(pair[0], image_folder) for pair in pairs]
    unknown = sorted({name for name in folders if name and name.lower() not in _SPLIT_NAMES})
    if unknown and any(name.lower() in _SPLIT_NAMES for name in folders):
        raise UserError(
            f"{images}: sub-folder {unknown[0]} is none of {', '.join(_SPLIT_NAMES)}, which others are; rename it or move it away"
        )
    for pair, name in zip(pairs, folders, strict=True):
        splits.setdefault(_SPLIT_NAMES.get(name.lower(), "train"), []).append(pair)
    seen = np.zeros(256, bool)
    with Progress(len(pairs), "values", unit="image") as progress:
        for _, label in pairs:
            seen[np.unique(read_label_image(root, label))] = True
            progress.update(1)
    seen[list(ignored)] = False
    values = np.flatnonzero(seen).tolist()
    if names and len(names) != len(values):
        raise UserError(f"{labels}: its values are {values}; {len(names)} names do not pair with these {len(values)}")
    classes = tuple(names) or tuple(f"class {value}" for value in values)
    return Found(root, splits, LabelValues(classes, tuple(values), tuple(ignored)))


def _first_folder(image: str, folder: str) -> str:
    """The sub-folder of `folder` that an image lies in; "" for one that lies in `folder` itself."""
    parts = PurePosixPath(image).relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


def pair_folders(root: Path, images: str, labels: str, suffix: str = "") -> list[Pair]:
    """(image, label image) below two folders, by their names without ending, sorted.

    Args:
        root: What the paths of the result are relative to.
        images: Folder below it.
        labels: Likewise.
        suffix: What a label image's name has after the image's.

    Raises:
        UserError: Naming what has no partner, and if there is nothing.
    """
    found, wanted = (_by_name(root, images, ""), _by_name(root, labels, suffix))
    for what, some, others in (("no label image", found, wanted), ("no image", wanted, found)):
        alone = sorted(some.keys() - others.keys())
        if alone:
            raise UserError(f"{root}: {len(alone)} with {what}: {', '.join(some[name] for name in alone[:3])}")
    if not found:
        raise UserError(f"{root / images}: no images there")
    return [(found[name], wanted[name]) for name in sorted(found)]


def unpack_ade(archive: Path, output: Path) -> Path:
    """ADEChallengeData2016.zip unpacked below `output`, files that are there in full left out; returns the data set's folder."""
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [entry for entry in packed.infolist() if not entry.is_dir()]
            roots = {PurePosixPath(entry.filename).parts[0] for entry in members}
            unsafe = [m.filename for m in members if {"..", "/"} & set(PurePosixPath(m.filename).parts)]
            if len(roots) != 1 or unsafe:
                raise UserError(f"{archive}: is not ADEChallengeData2016.zip, all of whose files lie in one folder")
            with Progress(len(members), "unpack", unit="file") as progress:
                for entry in members:
                    path = output / entry.filename
                    if not path.is_file() or path.stat().st_size != entry.file_size:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with atomic_path(path) as part:
                            Path(part).write_bytes(packed.read(entry))
                    progress.update(1)
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as error:  # RuntimeError: encrypted
        raise UserError(f"{archive}: cannot be unpacked ({error}); download it again") from None
    return output / roots.pop()


def write_found(found: Found, output: Path, name: str) -> dict[str, Path]:
    """Write <name>_<split>.json of every split and <name>_classes.json.

    Args:
        found: The pairs.
        output: Folder.
        name: What the files' names begin with.

    Returns:
        The files' paths by split, and "classes".
    """
    output.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, pairs in found.splits.items():
        paths[split] = output / f"{name}_{split}.json"
        write_list(paths[split], [{"image": image, "labels": labels} for image, labels in pairs])
    paths["classes"] = output / f"{name}_classes.json"
    values = found.values
    classes = [{"name": name, "value": value} for name, value in zip(values.classes, values.values, strict=True)]
    atomic_json(paths["classes"], {"classes": classes, "ignored": list(values.ignored)})
    return paths


def find_broken(found: Found) -> list[str]:
    """Read every pair once; a line for each that cannot be used, with the reason."""
    read, lines = PairReader(found.root, found.values), []
    pairs = [pair for split in found.splits.values() for pair in split]
    with Progress(len(pairs), "decode", unit="image") as progress:
        for pair in pairs:
            try:
                read(pair)
            except ImageError as error:
                lines.append(str(error))
            progress.update(1)
    return lines


def _ade_names(path: Path) -> list[str]:
    """The first of the names of each class, in the order of their numbers."""
    with reading(path, "give the folder ADEChallengeData2016 as unpacked", "download it again") as file:
        lines = [line.rstrip("\n").split("\t") for line in file if line.strip()]
    rows = lines[1:]
    if not rows or any(not row[0].strip().isdecimal() for row in rows):
        raise UserError(f"{path}: wants a head and a line a class, which begins with its number")
    if [int(row[0]) for row in rows] != list(range(1, len(rows) + 1)):
        raise UserError(f"{path}: the classes are not numbered from 1 to {len(rows)}")
    names = [row[-1].strip().split(",")[0] for row in rows]
    # ADE20K has two classes whose first name is one word, so those keep their number
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _by_name(root: Path, folder: str, suffix: str) -> dict[str, str]:
    """Path below `folder`, without ending and suffix -> path below `root`."""
    base, found = root / folder, {}
    if not base.is_dir():
        raise UserError(f"{base}: no such folder")
    for path in sorted(base.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.stem.endswith(suffix):
            continue
        name = path.relative_to(base).with_name(path.stem.removesuffix(suffix)).as_posix()
        if name in found:
            raise UserError(f"{base}: two files are called {name}")
        found[name] = path.relative_to(root).as_posix()
    return found
