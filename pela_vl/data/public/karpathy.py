"""Karpathy split files (dataset_flickr30k.json, dataset_coco.json) to ALBEF's retrieval lists."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import read_json
from pela_vl.data.paths import below, find, why_absent
from pela_vl.data.raw import kind, list_entries, typed, write_list
from pela_vl.data.text import has_text

SPLITS = ("train", "val", "test")
# `restval` are images of COCO's validation set outside the held-out splits; the public lists train on them.
_TARGET = {"train": "train", "restval": "train", "val": "val", "test": "test"}
# (images, captions) of the published splits
_FLICKR = {"train": (29000, 145000), "val": (1014, 5070), "test": (1000, 5000)}
_COCO = {"train": (113287, 566747), "val": (5000, 25010), "test": (5000, 25010)}
PUBLISHED = {"flickr30k": _FLICKR, "flickr": _FLICKR, "coco": _COCO, "mscoco": _COCO}  # by the lists' name


@dataclass(frozen=True)
class KarpathyImage:
    path: str  # relative to the image root, with forward slashes
    image_id: int
    split: str
    captions: tuple[str, ...]  # those with a word
    wordless: int = 0  # captions that have none


@dataclass
class Report:
    """What was written, by split.

    Attributes:
        images, captions: numbers in the lists.
        missing: images left out because they are absent.
        wordless: captions without a word, left out.
        uncaptioned: images left out because they have no other caption.
    """

    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    captions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    missing: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    wordless: int = 0
    uncaptioned: int = 0
    files: list[Path] = field(default_factory=list)


def read_karpathy(path: Path, image_root: Path) -> list[KarpathyImage]:
    """Read and check a Karpathy file. Whether the images exist is not checked. Captions without a word are left out and
    counted.

    Raises:
        UserError: Naming file, index and field, for a missing file, malformed JSON, a field that is absent or of the
            wrong type, a path that leaves `image_root`, a repeated image or an image without caption.
    """
    entries = list_entries(
        path, read_json(path, "give the Karpathy JSON with --karpathy"), "images", "a Karpathy split file"
    )
    images = [_check_image(place, entry, image_root) for place, entry in entries]
    if not images:
        raise UserError(f"{path}: 'images' is empty; nothing to list")
    seen: dict[str, int] = {}
    for index, image in enumerate(images):
        if image.path in seen:
            raise UserError(
                f"{path}: images[{index}]: {image.path} stands in images[{seen[image.path]}] already; remove one"
            )
        seen[image.path] = index
    return images


def _check_image(place: str, entry: dict[str, Any], image_root: Path) -> KarpathyImage:
    name = typed(place, entry, "filename", str)
    folder = typed(place, entry, "filepath", str) if "filepath" in entry else ""  # Flickr30K's file has none
    split = typed(place, entry, "split", str)
    if split not in _TARGET:
        raise UserError(f"{place}.split: {split!r} is none of {', '.join(_TARGET)}")
    image_id = typed(place, entry, "imgid", int)
    relative = f"{folder}/{name}" if folder else name
    try:
        relative = below(image_root, relative)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    sentences = typed(place, entry, "sentences", list)
    captions = []
    for k, sentence in enumerate(sentences):
        if not isinstance(sentence, dict):
            raise UserError(f"{place}.sentences[{k}]: wants an object, got {kind(sentence)}")
        text = typed(f"{place}.sentences[{k}]", sentence, "raw", str).strip()
        captions += [text] if has_text(text) else []
    if not sentences:
        raise UserError(f"{place}.sentences: {relative} has no caption; remove the image from the file")
    return KarpathyImage(relative, image_id, _TARGET[split], tuple(captions), len(sentences) - len(captions))


def write_lists(
    images: Sequence[KarpathyImage], image_root: Path, output: Path, name: str, skip_missing: bool = False
) -> Report:
    """Write `{name}_{train,val,test,pretrain}.json`.

    train has one {image, caption, image_id} per caption. val and test have one {image, caption: [..]} per image; so has
    pretrain, over the images of train.

    Args:
        images: what `read_karpathy` returned.
        image_root: folder below which the images lie.
        output: folder of the lists.
        name: prefix of the lists' names.
        skip_missing: leave out and count absent images instead of raising.

    Raises:
        UserError: If an image is absent or a split has none. No list is written then.
    """
    if not image_root.is_dir():
        raise UserError(f"{image_root}: no such folder; give the folder of the images with --image-root")
    report = Report()
    lists: dict[str, list[dict[str, Any]]] = {key: [] for key in (*SPLITS, "pretrain")}
    for image in images:
        path = find(image_root, image.path)
        if path is None:
            if not skip_missing:
                reason = why_absent(image_root, image.path)
                raise UserError(f"{reason}; complete the download or use --skip-missing")
            report.missing[image.split] += 1
            continue
        report.wordless += image.wordless
        if not image.captions:
            report.uncaptioned += 1
            continue
        report.images[image.split] += 1
        report.captions[image.split] += len(image.captions)
        whole = {"image": path, "caption": list(image.captions)}
        if image.split == "train":
            lists["train"] += [{"image": path, "caption": text, "image_id": image.image_id} for text in image.captions]
            lists["pretrain"].append(whole)
        else:
            lists[image.split].append(whole)
    for split in SPLITS:
        if not report.images[split]:
            gone = f" ({report.missing[split]} are missing)" if report.missing[split] else ""
            raise UserError(f"{image_root}: split {split} has no image{gone}; give the folder that holds the images")
    for key, entries in lists.items():
        report.files.append(output / f"{name}_{key}.json")
        write_list(report.files[-1], entries)
    return report
