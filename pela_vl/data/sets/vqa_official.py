"""VQA v2's official files (questions, annotations), Visual Genome's questions and answer lists, checked against their schema."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import read_json
from pela_vl.data.raw import kind, typed

ANSWER_TYPES = ("yes/no", "number", "other")
PATTERNS = {
    # the images of test-dev are among those of test
    "mscoco": "{subset}/COCO_{subset}_{image_id:012d}.jpg",
    "scenes": "images/{subset}/scene_{image_id:08d}.jpg",
}
"""Where the image of a question lies below the image root, by the question file's data_type."""


@dataclass(frozen=True)
class Question:
    question_id: int
    image_id: int
    text: str


@dataclass(frozen=True)
class QuestionFile:
    """Questions in the file's order, with the file's metadata."""

    path: Path
    data_type: str
    data_subtype: str
    questions: list[Question]

    @property
    def ids(self) -> list[int]:
        return [question.question_id for question in self.questions]


@dataclass(frozen=True)
class Annotation:
    """What people answered to one question; `answer` is the most frequent."""

    question_id: int
    image_id: int
    question_type: str
    answer_type: str
    answer: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class GenomeQuestion:
    """A question of Visual Genome with its one answer."""

    question_id: int
    image_id: int
    text: str
    answer: str


def read_questions(path: Path) -> QuestionFile:
    """Read `v2_OpenEnded_*_questions.json`.

    Raises `UserError` naming file, index and field for what the schema does not allow, and for an id that stands twice.
    """
    document = read_json(path)
    questions: list[Question] = []
    for place, entry in _entries(path, document, "questions"):
        text = typed(place, entry, "question", str)
        if not text.strip():
            raise UserError(f"{place}.question: is empty; every question needs a text")
        questions.append(Question(typed(place, entry, "question_id", int), typed(place, entry, "image_id", int), text))
    _refuse_repetition(path, "questions", [question.question_id for question in questions])
    data_type, data_subtype = (typed(str(path), document, key, str) for key in ("data_type", "data_subtype"))
    return QuestionFile(path, data_type, data_subtype, questions)


def read_annotations(path: Path) -> list[Annotation]:
    """Read `v2_*_annotations.json`. Raises `UserError` as `read_questions` does."""
    annotations: list[Annotation] = []
    for place, entry in _entries(path, read_json(path), "annotations"):
        answer_type = typed(place, entry, "answer_type", str)
        if answer_type not in ANSWER_TYPES:
            raise UserError(f"{place}.answer_type: {answer_type!r} is none of {', '.join(ANSWER_TYPES)}")
        annotations.append(
            Annotation(
                typed(place, entry, "question_id", int),
                typed(place, entry, "image_id", int),
                typed(place, entry, "question_type", str),
                answer_type,
                typed(place, entry, "multiple_choice_answer", str),
                _answers(place, typed(place, entry, "answers", list)),
            )
        )
    _refuse_repetition(path, "annotations", [annotation.question_id for annotation in annotations])
    return annotations


def _answers(place: str, entries: list[Any]) -> tuple[str, ...]:
    if not entries:
        raise UserError(f"{place}.answers: is empty; a question without an answer cannot be learnt or judged")
    answers, ids = [], set()
    for k, entry in enumerate(entries):
        where = f"{place}.answers[{k}]"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: wants an object, got {kind(entry)}")
        answers.append(typed(where, entry, "answer", str))
        number = typed(where, entry, "answer_id", int)
        if number in ids:
            # the official evaluation distinguishes people's equal answers by it
            raise UserError(f"{where}.answer_id: {number} stands twice among the answers of one question")
        ids.add(number)
    return tuple(answers)


def read_genome(path: Path) -> list[GenomeQuestion]:
    """Read Visual Genome's `question_answers.json`, a list of {id, qas: [{qa_id, question, answer}]}.

    Raises `UserError` as `read_questions` does.
    """
    document = read_json(path)
    if not isinstance(document, list) or not document:
        raise UserError(
            f"{path}: wants a list of images with their questions, got {'an empty list' if document == [] else kind(document)}"
        )
    questions: list[GenomeQuestion] = []
    for index, entry in enumerate(document):
        place = f"{path}: [{index}]"
        if not isinstance(entry, dict):
            raise UserError(f"{place}: wants an object, got {kind(entry)}")
        image_id = typed(place, entry, "id", int)
        for k, pair in enumerate(typed(place, entry, "qas", list)):
            where = f"{place}.qas[{k}]"
            if not isinstance(pair, dict):
                raise UserError(f"{where}: wants an object, got {kind(pair)}")
            questions.append(
                GenomeQuestion(
                    typed(where, pair, "qa_id", int),
                    image_id,
                    typed(where, pair, "question", str),
                    typed(where, pair, "answer", str),
                )
            )
    _refuse_repetition(path, "qas", [question.question_id for question in questions])
    return questions


def paired(file: QuestionFile, path: Path, annotations: list[Annotation]) -> list[tuple[Question, Annotation]]:
    """Every question with its annotation.

    Args:
        file: the questions.
        path: of the annotations, for errors.
        annotations: what was read from `path`.

    Raises:
        UserError: Listing ids that only one of the two files has, or that are about different images.
    """
    by_id = {annotation.question_id: annotation for annotation in annotations}
    asked = set(file.ids)
    without = [number for number in file.ids if number not in by_id]
    unasked = [number for number in by_id if number not in asked]
    if without:
        raise UserError(
            f"{path}: no annotation for {listed(without)} of {file.path.name}; the files do not belong together"
        )
    if unasked:
        raise UserError(f"{path}: {listed(unasked)} not in {file.path.name}; the files do not belong together")
    pairs = [(question, by_id[question.question_id]) for question in file.questions]
    for question, annotation in pairs:
        if question.image_id != annotation.image_id:
            raise UserError(
                f"{path}: question {question.question_id} is about image {annotation.image_id} here and about "
                f"{question.image_id} in {file.path.name}"
            )
    return pairs


def image_path(file: QuestionFile, image_id: int, pattern: str | None = None) -> str:
    """Path below the image root of a question's image.

    Args:
        file: gives data_type and data_subtype.
        image_id: of the question.
        pattern: with {image_id} (a format may follow, as in {image_id:012d}) and {subset}; None: that of the file's
            data_type.

    Raises:
        UserError: If the data_type has no pattern, or the pattern cannot be filled in.
    """
    pattern = pattern or PATTERNS.get(file.data_type)
    if pattern is None:
        raise UserError(
            f"{file.path}: data_type {file.data_type!r} is none of {', '.join(PATTERNS)}; say with --image-pattern where "
            "the images lie, as {subset}/{image_id}.jpg"
        )
    try:
        return pattern.format(image_id=image_id, subset=file.data_subtype.replace("test-dev", "test"))
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"image pattern {pattern!r}: {error}; only {{image_id}} and {{subset}} are filled in") from None


def listed(ids: list[int], most: int = 10) -> str:
    """Ids for a message: their number and the first few."""
    shown = ", ".join(map(str, ids[:most]))
    return f"{len(ids)} question id{'s' * (len(ids) > 1)} ({shown}{', ...' if len(ids) > most else ''})"


def _entries(path: Path, document: Any, key: str) -> Iterator[tuple[str, Any]]:
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path}: has no list {key!r} at its top; an official VQA file is wanted")
    if not entries:
        raise UserError(f"{path}: {key!r} is empty; nothing to list")
    for index, entry in enumerate(entries):
        place = f"{path}: {key}[{index}]"
        if not isinstance(entry, dict):
            raise UserError(f"{place}: wants an object, got {kind(entry)}")
        yield place, entry


def _refuse_repetition(path: Path, key: str, ids: list[int]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[int] = set()
    twice: list[int] = []
    for number in ids:
        if number in seen:
            twice.append(number)
        seen.add(number)
    raise UserError(f"{path}: {key}: {listed(twice)} stand more than once")


def read_answer_list(path: str | os.PathLike[str]) -> list[str]:
    """The answers of an answer_list.json in order. Raises `UserError` if it is no list of different texts."""
    answers = read_json(path)
    if not isinstance(answers, list) or not answers:
        raise UserError(
            f"{os.fspath(path)}: wants a list of answers, got {'an empty list' if answers == [] else kind(answers)}"
        )
    seen: dict[str, int] = {}
    for index, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise UserError(f"{os.fspath(path)}: [{index}]: wants a text, got {kind(answer)}")
        if answer in seen:
            raise UserError(f"{os.fspath(path)}: [{index}]: {answer!r} stands in [{seen[answer]}] already")
        seen[answer] = index
    return answers
