"""SNLI-VE's raw files (snli_ve_{train,dev,test}.jsonl) to ALBEF's entailment lists."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.paths import below, find, why_absent
from pela_vl.data.raw import kind, reading, typed, write_list
from pela_vl.data.sets.entailment import LABELS
from pela_vl.data.text import has_text

SPLITS = ("train", "dev", "test")
PUBLISHED = {
    "train": {"pairs": 529527, "images": 29783},
    "dev": {"pairs": 17858, "images": 1000},
    "test": {"pairs": 17901, "images": 1000},
}
NO_LABEL = "-"  # the annotators did not agree
ID_KEYS = ("Flickr30K_ID", "Flikr30kID")  # in the present download, and in earlier files and the generator's


@dataclass(frozen=True)
class Pair:
    image: str  # relative to the image root, with forward slashes
    sentence: str
    label: str


@dataclass
class Split:
    """The usable pairs of a file, and how many rows have no label or no word."""

    pairs: list[Pair] = field(default_factory=list)
    unlabelled: int = 0
    wordless: int = 0


@dataclass
class Report:
    """What was written of one split; `missing` counts pairs left out because their image is absent."""

    file: Path
    pairs: int
    images: int
    labels: dict[str, int]
    missing: int


def read_snli_ve(path: Path, image_root: Path, pattern: str = "{id}.jpg") -> Split:
    """Read and check a jsonl file. Whether the images exist is not checked.

    Args:
        path: of the file.
        image_root: folder of the images.
        pattern: of an image's path below the root; {id} is replaced by the row's Flickr id without `.jpg`.

    Raises:
        UserError: Naming file, line and field, for malformed JSON, a field that is absent or of the wrong type, an
            unknown label or a path that leaves `image_root`; and when no pair is left.
    """
    split = Split()
    for number, line in _lines(path):
        place = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not valid JSON ({error}); download the file again") from None
        if not isinstance(row, dict):
            raise UserError(f"{place}: wants an object, got {kind(row)}")
        try:
            image = below(image_root, pattern.replace("{id}", _flickr_id(place, row)))
        except UserError as error:
            raise UserError(str(error) if place in str(error) else f"{place}: {error}") from None
        sentence = typed(place, row, "sentence2", str).strip()
        label = typed(place, row, "gold_label", str)
        if label == NO_LABEL:
            split.unlabelled += 1
        elif label not in LABELS:
            raise UserError(f"{place}.gold_label: {label!r} is none of {', '.join((*LABELS, NO_LABEL))}")
        elif not has_text(sentence):
            split.wordless += 1
        else:
            split.pairs.append(Pair(image, sentence, label))
    if not split.pairs:
        raise UserError(f"{path}: holds no pair with a label; a file of SNLI-VE is wanted")
    return split


def write_lists(
    splits: Mapping[str, Split], image_root: Path, output: Path, name: str, skip_missing: bool = False
) -> dict[str, Report]:
    """Write `{name}_{split}.json`, one {image, sentence, label} per pair, in the order of the file.

    Args:
        splits: what `read_snli_ve` returned, by split.
        image_root: folder of the images.
        output: folder of the lists.
        name: prefix of the lists' names.
        skip_missing: leave out and count pairs whose image is absent instead of raising.

    Returns:
        A report per split.

    Raises:
        UserError: If an image is absent or a split has none, before any list is written.
    """
    if not image_root.is_dir():
        raise UserError(f"{image_root}: no such folder; give the folder of the images with --image-root")
    kept: dict[str, list[Pair]] = {}
    there: dict[str, str | None] = {}
    for split, content in splits.items():
        for pair in content.pairs:
            if pair.image not in there:
                there[pair.image] = find(image_root, pair.image)
            if there[pair.image] is None and not skip_missing:
                reason = why_absent(image_root, pair.image)
                raise UserError(f"{reason}; complete the download, correct --image-pattern or use --skip-missing")
        kept[split] = [replace(pair, image=image) for pair in content.pairs if (image := there[pair.image])]
        if not kept[split]:
            raise UserError(f"{image_root}: has no image of split {split}; give the folder that holds the images")
    reports = {}
    for split, pairs in kept.items():
        file = output / f"{name}_{split}.json"
        write_list(file, [{"image": p.image, "sentence": p.sentence, "label": p.label} for p in pairs])
        labels = {label: sum(pair.label == label for pair in pairs) for label in LABELS}
        images = len({pair.image for pair in pairs})
        reports[split] = Report(file, len(pairs), images, labels, len(splits[split].pairs) - len(pairs))
    return reports


def shared_images(splits: Mapping[str, Split]) -> dict[tuple[str, str], int]:
    """How many images two splits have in common, for every two splits that have any. The published splits have none."""
    images = {split: {pair.image for pair in content.pairs} for split, content in splits.items()}
    names: Sequence[str] = list(images)
    counts = {(a, b): len(images[a] & images[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
    return {pair: count for pair, count in counts.items() if count}


def _flickr_id(place: str, row: dict[str, Any]) -> str:
    for key in ID_KEYS:
        if key in row:
            # some copies have numbers, and the suffix may be missing
            value = (
                row[key]
                if isinstance(row[key], int) and not isinstance(row[key], bool)
                else typed(place, row, key, str)
            )
            name = str(value).removesuffix(".jpg")
            if not name or PurePosixPath(name).name != name:
                raise UserError(f"{place}.{key}: {value!r} is no Flickr id, such as 4705552913.jpg")
            return name
    raise UserError(f"{place}.{ID_KEYS[0]}: is missing ({ID_KEYS[1]} too); a Flickr id is wanted")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) without empty lines."""
    with reading(path, "give SNLI-VE's jsonl files", "download it again", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
