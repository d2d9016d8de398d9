"""VQA's and Visual Genome's raw files to ALBEF's lists {question_id, question, image, dataset, answer: [..]}."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import read_json
from pela_vl.data.paths import find, unreadable, why_absent
from pela_vl.data.raw import kind, typed
from pela_vl.data.sets.vqa_official import (
    Annotation,
    GenomeQuestion,
    image_path,
    paired,
    read_annotations,
    read_questions,
)
from pela_vl.data.text import has_text
from pela_vl.metrics.vqa_accuracy import normalize_answer

PUBLISHED = {"train": 443_757, "val": 214_354, "test": 447_793, "test_dev": 107_394, "vg": 1_445_322, "answers": 3_128}
"""Questions of VQA v2's parts, of Visual Genome 1.2, and the answers of ALBEF's answer_list.json."""
MIN_COUNT = 9
ROLES = ("train", "val", "test", "test_dev")
GENOME_FOLDERS = ("", "VG_100K", "VG_100K_2", "image", "images")  # as the two archives unpack, or all in one folder

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One part of VQA: its role (one of ROLES) and its files."""

    role: str
    questions: Path
    annotations: Path | None


def find_parts(folder: Path, roles: Sequence[str] | None = None) -> list[Part]:
    """The parts whose official files are in a folder, in the order train, val, test, test_dev; with `roles`, only
    these.

    Raises:
        UserError: If there is none, a role has two files, a role asked for is not there, or train or val lacks its
            annotations.
    """
    found: dict[str, Part] = {}
    for path in sorted(folder.glob("v2_OpenEnded_*_questions.json")):
        name = path.name.removeprefix("v2_OpenEnded_").removesuffix("_questions.json")
        subset = name.rpartition("_")[2]
        role = next((r for r, start in _STARTS.items() if subset.startswith(start)), None)
        if role is None:
            raise UserError(f"{path}: {subset!r} is neither train, val, test-dev nor test")
        if roles is not None and role not in roles:
            continue
        if role in found:
            raise UserError(f"{folder}: holds {found[role].questions.name} and {path.name}; keep one data set a folder")
        annotations = folder / f"v2_{name}_annotations.json"
        if not annotations.exists() and role in ("train", "val"):
            raise UserError(f"{annotations}: no such file; {path.name} needs its annotations")
        found[role] = Part(role, path, annotations if annotations.exists() else None)
    absent = [role for role in roles or () if role not in found]
    if absent:
        raise UserError(
            f"{folder}: no questions of {', '.join(absent)} in it; unpack them there or choose other --parts"
        )
    if not found:
        raise UserError(f"{folder}: no v2_OpenEnded_*_questions.json in it; unpack the files of visualqa.org there")
    return [found[role] for role in ROLES if role in found]


_STARTS = {"train": "train", "val": "val", "test_dev": "test-dev", "test": "test"}


@dataclass
class PartLists:
    """The content of a part's files: list entries, numbers of present and absent images, annotations for the answer
    list.
    """

    entries: list[Record]
    images: int
    missing: int
    annotations: list[Annotation]


def read_part(part: Part, image_root: Path, pattern: str | None = None, skip_missing: bool = False) -> PartLists:
    """Read and check one part of VQA. Its entries hold answer_type and question_type too, for the accuracy's breakdown.

    Args:
        part: the files.
        image_root: folder of the images.
        pattern: of an image's path below the root (`vqa_official.image_path`); None: COCO's names.
        skip_missing: leave out and count questions about absent images. Only in train: an evaluation set must be
            complete.

    Raises:
        UserError: Naming file, index and field.
    """
    file = read_questions(part.questions)
    annotations = read_annotations(part.annotations) if part.annotations else []
    by_id = {a.question_id: a for _, a in paired(file, part.annotations, annotations)} if part.annotations else {}
    lists = PartLists([], 0, 0, annotations)
    present: dict[int, str | None] = {}
    for index, question in enumerate(file.questions):
        relative = image_path(file, question.image_id, pattern)
        if question.image_id not in present:
            try:
                present[question.image_id] = find(image_root, relative)
            except UserError as error:
                raise UserError(f"{file.path}: questions[{index}]: {error}") from None
        image = present[question.image_id]
        if image is None:
            if not (skip_missing and part.role == "train"):
                raise UserError(
                    f"{part.questions}: questions[{index}]: {why_absent(image_root, relative)}; complete the download"
                    + (" or use --skip-missing" if part.role == "train" else ", or choose --parts")
                )
            lists.missing += 1
            continue
        entry = {"question_id": question.question_id, "question": question.text, "image": image, "dataset": "vqa"}
        if by_id:
            said = by_id[question.question_id]
            entry |= {
                "answer": list(said.answers),
                "answer_type": said.answer_type,
                "question_type": said.question_type,
            }
        lists.entries.append(entry)
    lists.images = sum(image is not None for image in present.values())
    return lists


def genome_entries(
    questions: Sequence[GenomeQuestion], root: Path, answers: Sequence[str] | None = None, skip_missing: bool = False
) -> tuple[list[Record], Counter[str]]:
    """List entries of Visual Genome's questions.

    Answers are normalised by VQA's official rules ("Two." becomes "2"). Questions or answers without a word are left
    out.

    Args:
        questions: what was read of Visual Genome.
        root: folder of the images, or the one above VG_100K and VG_100K_2.
        answers: keep only questions with an answer in this list; None: all.
        skip_missing: leave out and count questions about absent images instead of raising.

    Returns:
        The entries, and how many questions were left out by reason.

    Raises:
        UserError: If an image is absent.
    """
    folders = {folder: _names(root / folder) for folder in GENOME_FOLDERS}
    wanted = None if answers is None else set(answers)
    entries: list[Record] = []
    dropped: Counter[str] = Counter()
    for question in questions:
        answer = normalize_answer(question.answer)
        name = f"{question.image_id}.jpg"
        folder = next((folder for folder, names in folders.items() if name in names), None)
        if not answer or not has_text(question.text):
            dropped["no word"] += 1
        elif wanted is not None and answer not in wanted:
            dropped["answer not in the list"] += 1
        elif folder is None:
            if not skip_missing:
                raise UserError(f"{root}: no image {name}; complete the download or use --skip-missing")
            dropped["image absent"] += 1
        else:
            image = f"{folder}/{name}" if folder else name
            entries.append(
                {
                    "question_id": question.question_id,
                    "question": question.text,
                    "image": image,
                    "dataset": "vg",
                    "answer": [answer],
                }
            )
    return entries, dropped


def without_images(questions: Sequence[GenomeQuestion], image_data: Path, coco_ids: set[int]) -> list[GenomeQuestion]:
    """The questions, without those about certain COCO images.

    Args:
        questions: of Visual Genome.
        image_data: path of Visual Genome's image_data.json, which gives COCO's ids.
        coco_ids: ids of the images to leave out.

    Raises:
        UserError: If the file is malformed.
    """
    document = read_json(image_data)
    if not isinstance(document, list):
        raise UserError(f"{image_data}: wants a list of images, got {kind(document)}")
    held = set()
    for index, entry in enumerate(document):
        place = f"{image_data}: [{index}]"
        if not isinstance(entry, dict):
            raise UserError(f"{place}: wants an object, got {kind(entry)}")
        number = typed(place, entry, "image_id", int)
        if entry.get("coco_id") in coco_ids:
            held.add(number)
    return [question for question in questions if question.image_id not in held]


def of_types(lists: PartLists, types: Sequence[str]) -> PartLists:
    """A part's questions of some question types, and their annotations.

    Args:
        lists: of `read_part`.
        types: VQA's question_type, such as "what color is the".

    Raises:
        UserError: If there is no question of one of the types; the types that there are are listed. A part without annotations
            has none.
    """
    there = {entry["question_type"] for entry in lists.entries if "question_type" in entry}
    absent = [name for name in types if name not in there]
    if absent:
        raise UserError(
            f"no question of type {', '.join(map(repr, absent))}; there are: {', '.join(sorted(there)) or 'none'}"
        )
    entries = [entry for entry in lists.entries if entry["question_type"] in types]
    annotations = [annotation for annotation in lists.annotations if annotation.question_type in types]
    return PartLists(entries, len({entry["image"] for entry in entries}), lists.missing, annotations)


def answer_list(annotations: Iterable[Annotation], min_count: int = MIN_COUNT) -> list[str]:
    """The answers to rank: normalised answers of at least `min_count` questions, most frequent first, ties in
    alphabetical order.

    An answer that normalisation empties is left out. This is the rule behind the list of 3,129 that the field uses, and
    by all signs behind ALBEF's 3,128.

    Raises:
        UserError: If no answer is frequent enough.
    """
    counts = Counter(normalize_answer(annotation.answer) for annotation in annotations)
    chosen = [answer for answer, count in counts.items() if answer and count >= min_count]
    if not chosen:
        raise UserError(f"no answer is that of {min_count} questions; lower --min-count")
    return sorted(chosen, key=lambda answer: (-counts[answer], answer))


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in os.scandir(folder) if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise unreadable(folder, error) from None
