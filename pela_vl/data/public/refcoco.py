"""RefCOCO+'s public files (refs(unc).p, instances.json, detected boxes) to the lists that grounding reads.

Boxes are [x, y, width, height] in pixels of the image.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.data.json_files import read_json
from pela_vl.data.paths import below, find, why_absent
from pela_vl.data.plain_pickle import read_plain_pickle
from pela_vl.data.raw import kind, list_entries, typed, write_list
from pela_vl.data.sets.grounding import FORMAT
from pela_vl.data.text import has_text

SPLITS = ("train", "val", "testA", "testB")
# referred objects and expressions of each split
PUBLISHED = {
    "refcoco+": {"train": (42278, 120191), "val": (3805, 10758), "testA": (1975, 5726), "testB": (1798, 4889)},
}

Box = list[float]
_INSTANCES = "COCO's instances file"


@dataclass(frozen=True)
class SizedImage:
    path: str  # relative to the image root
    width: int
    height: int


@dataclass(frozen=True)
class Ref:
    """A referred object: its true box and the expressions that refer to it, as (sent_id, text)."""

    ref_id: int
    image_id: int
    split: str
    box: Box
    expressions: tuple[tuple[int, str], ...]


@dataclass
class Corpus:
    """The content of the public files.

    Attributes:
        images: path and size by image id.
        refs: the referred objects.
        candidates: candidate boxes by image id.
        candidates_from: "detections" or "instances".
    """

    images: dict[int, SizedImage]
    refs: list[Ref]
    candidates: dict[int, list[Box]]
    candidates_from: str
    without_area: int = 0  # candidate boxes left out
    wordless: int = 0  # expressions without a word, left out
    unnamed: int = 0  # referred objects that have no other expression, left out


@dataclass
class Report:
    """What was written.

    Attributes:
        counts: (referred objects, expressions) by split.
        missing: referred objects left out because their image is absent, by split.
        without_candidates: held-out images without a candidate box.
        files: the paths.
    """

    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    without_candidates: int = 0
    files: list[Path] = field(default_factory=list)


def read_corpus(
    refs_file: Path, instances_file: Path, image_root: Path, image_folder: str = "", detections_file: Path | None = None
) -> Corpus:
    """Read and check the public files. Whether the images exist is not checked.

    Args:
        refs_file: refs(unc).p.
        instances_file: instances.json.
        image_root: folder of the images.
        image_folder: folder below `image_root` where the file names of instances.json are; `train2014` for COCO's.
        detections_file: MAttNet's list of {image_id, box, ...}, or ALBEF's dict from image id to boxes. None: every
            object of instances.json that is no crowd is a candidate.

    Raises:
        UserError: Naming file, entry and field of whatever does not fit.
    """
    instances = read_json(instances_file)
    images = {}
    for place, entry in list_entries(instances_file, instances, "images", _INSTANCES):
        image_id, name = typed(place, entry, "id", int), typed(place, entry, "file_name", str)
        width, height = typed(place, entry, "width", int), typed(place, entry, "height", int)
        if image_id in images:
            raise UserError(f"{place}.id: {image_id} stands twice; remove one")
        if min(width, height) < 1:
            raise UserError(f"{place}: an image of {width} x {height} pixels")
        path = f"{image_folder}/{name}" if image_folder else name
        try:
            path = below(image_root, path)
        except UserError as error:
            raise UserError(f"{place}.file_name: {error}") from None
        images[image_id] = SizedImage(path, width, height)
    boxes: dict[int, tuple[int, Box]] = {}
    objects: dict[int, list[Box]] = {}
    for place, entry in list_entries(instances_file, instances, "annotations", _INSTANCES):
        image_id, annotation_id = typed(place, entry, "image_id", int), typed(place, entry, "id", int)
        box = _box(f"{place}.bbox", typed(place, entry, "bbox", list))
        if annotation_id in boxes:
            raise UserError(f"{place}.id: {annotation_id} stands twice; remove one")
        boxes[annotation_id] = (image_id, box)
        if not entry.get("iscrowd"):
            objects.setdefault(image_id, []).append(box)
    refs, wordless = _read_refs(refs_file, instances_file, images, boxes)
    candidates = objects if detections_file is None else _read_detections(detections_file)
    kept = {image_id: [box for box in found if _area(box) > 0] for image_id, found in candidates.items()}
    dropped = sum(map(len, candidates.values())) - sum(map(len, kept.values()))
    named = [ref for ref in refs if ref.expressions]
    return Corpus(images, named, kept, "instances" if detections_file is None else "detections", dropped,
                  wordless, sum(not ref.expressions for ref in refs))  # fmt: skip


def _read_refs(
    file: Path, instances_file: Path, images: dict[int, SizedImage], boxes: dict[int, tuple[int, Box]]
) -> tuple[list[Ref], int]:
    content = read_plain_pickle(file)
    if not isinstance(content, list) or not content:
        raise UserError(f"{file}: wants a list of referred objects that is not empty, got {kind(content)}")
    refs: list[Ref] = []
    wordless = 0
    seen: set[int] = set()
    seen_sentences: set[int] = set()
    for number, entry in enumerate(content):
        place = f"{file}: ref {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{place}: wants a dict, got {kind(entry)}")
        ref_id, annotation_id, image_id = (typed(place, entry, key, int) for key in ("ref_id", "ann_id", "image_id"))
        split = typed(place, entry, "split", str)
        if split not in SPLITS:
            raise UserError(f"{place}.split: {split!r} is none of {', '.join(SPLITS)}; use the unc split, refs(unc).p")
        if ref_id in seen:
            raise UserError(f"{place}.ref_id: {ref_id} stands twice; remove one")
        if annotation_id not in boxes:
            raise UserError(f"{place}.ann_id: {annotation_id} is no annotation of {instances_file}")
        owner, box = boxes[annotation_id]
        if owner != image_id or image_id not in images:
            raise UserError(f"{place}.image_id: {image_id} is not the image of annotation {annotation_id}")
        if _area(box) <= 0:
            raise UserError(f"{place}: annotation {annotation_id} has the box {box}, which has no area")
        expressions = []
        for k, sentence in enumerate(typed(place, entry, "sentences", list)):
            here = f"{place}.sentences[{k}]"
            if not isinstance(sentence, dict):
                raise UserError(f"{here}: wants a dict, got {kind(sentence)}")
            sent_id, text = typed(here, sentence, "sent_id", int), typed(here, sentence, "sent", str)
            if sent_id in seen_sentences:
                raise UserError(f"{here}.sent_id: {sent_id} stands twice; remove one")
            seen_sentences.add(sent_id)
            if has_text(text):
                expressions.append((sent_id, text))
            else:
                wordless += 1
        if not entry["sentences"]:
            raise UserError(f"{place}.sentences: is empty; an expression is wanted")
        seen.add(ref_id)
        refs.append(Ref(ref_id, image_id, split, box, tuple(expressions)))
    return refs, wordless


def _read_detections(file: Path) -> dict[int, list[Box]]:
    content = read_json(file)
    found: dict[int, list[Box]] = {}
    if isinstance(content, list):
        for number, entry in enumerate(content):
            place = f"{file}: detection {number}"
            if not isinstance(entry, dict):
                raise UserError(f"{place}: wants an object with image_id and box, got {kind(entry)}")
            box = _box(f"{place}.box", typed(place, entry, "box", list))
            found.setdefault(typed(place, entry, "image_id", int), []).append(box)
        return found
    if not isinstance(content, dict):
        raise UserError(f"{file}: wants boxes by image id, or a list of detections; got {kind(content)}")
    for key, entries in content.items():
        if not key.isdecimal() or not isinstance(entries, list):
            raise UserError(f"{file}: wants a list of boxes for each image id, got {kind(entries)} for {key!r}")
        found[int(key)] = [_box(f"{file}: image {key}, box {k}", entry) for k, entry in enumerate(entries)]
    return found


def write_lists(corpus: Corpus, image_root: Path, output: Path, name: str, skip_missing: bool = False) -> Report:
    """Write {name}_{train,val,test}.json, ALBEF's {image, text, ref_id} plus sent_id, and {name}_boxes.json.

    test holds testA and testB. The boxes file has what the evaluation needs: the image, true box and split of every
    held-out object, and the size and candidate boxes of every held-out image.

    Args:
        corpus: what `read_corpus` returned.
        image_root: folder of the images.
        output: folder of the lists.
        name: prefix of the files' names.
        skip_missing: leave out and count objects whose image is absent instead of raising.

    Raises:
        UserError: If an image is absent, a split has no expression, or no held-out image has a candidate box. Nothing
            is written then.
    """
    if not image_root.is_dir():
        raise UserError(f"{image_root}: no such folder; give the folder of the images with --image-root")
    report = Report()
    there: dict[int, str | None] = {}
    lists: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    kept: list[Ref] = []
    for ref in corpus.refs:
        stored = corpus.images[ref.image_id]
        if ref.image_id not in there:
            there[ref.image_id] = find(image_root, stored.path)
        path = there[ref.image_id]
        if path is None:
            if not skip_missing:
                raise UserError(
                    f"{why_absent(image_root, stored.path)}; complete the download, correct --image-root or "
                    "--image-folder, or use --skip-missing"
                )
            report.missing[ref.split] += 1
            continue
        kept.append(ref)
        lists["test" if ref.split.startswith("test") else ref.split] += [
            {"image": path, "text": text, "ref_id": ref.ref_id, "sent_id": sent_id} for sent_id, text in ref.expressions
        ]
    for split in SPLITS:
        in_split = [ref for ref in kept if ref.split == split]
        if not in_split:
            raise UserError(f"split {split} has no expression (images absent: {report.missing[split]})")
        report.counts[split] = (len(in_split), sum(len(ref.expressions) for ref in in_split))
    held_out = [ref for ref in kept if ref.split != "train"]
    images = {ref.image_id: corpus.images[ref.image_id] for ref in held_out}
    boxes: dict[str, Any] = {
        "format": FORMAT,
        "candidates": corpus.candidates_from,
        "images": {
            str(image_id): {
                "image": there[image_id],
                "width": stored.width,
                "height": stored.height,
                "boxes": corpus.candidates.get(image_id, []),
            }
            for image_id, stored in images.items()
        },
        "refs": {str(ref.ref_id): {"image_id": ref.image_id, "split": ref.split, "box": ref.box} for ref in held_out},
    }
    report.without_candidates = sum(not entry["boxes"] for entry in boxes["images"].values())
    if report.without_candidates == len(images):
        raise UserError("no held-out image has a candidate box; are the detections of other images?")
    for key, entries in lists.items():
        report.files.append(output / f"{name}_{key}.json")
        write_list(report.files[-1], entries)
    report.files.append(output / f"{name}_boxes.json")
    atomic_json(report.files[-1], boxes)
    return report


def _box(place: str, values: Any) -> Box:
    """The first four numbers; ALBEF's detections have more."""
    numbers = values[:4] if isinstance(values, list) else []
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in numbers)
    if len(numbers) < 4 or not numeric or min(numbers[2:]) < 0:
        raise UserError(f"{place}: wants [x, y, width, height] in pixels, got {str(values)[:80]}")
    return [float(v) for v in numbers]


def _area(box: Box) -> float:
    return box[2] * box[3]
