"""VQA predictions in the official format, `[{"question_id": int, "answer": text}, ...]`, checked before they are
written.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError
from pela_vl.data.json_files import read_json
from pela_vl.data.raw import kind, typed, write_list
from pela_vl.data.sets.vqa_official import listed


def check_results(results: Any, ids: Sequence[int], place: str) -> dict[int, str]:
    """Check that there is exactly one answer to every question, and return the answers by question id.

    Args:
        results: content of a result file.
        ids: of the questions.
        place: name of the results in errors.

    Raises:
        UserError: If they are no list of objects with question_id and answer, or, listing the ids, if a question has no
            answer or several, or an answer no question.
    """
    if not isinstance(results, list):
        raise UserError(f"{place}: wants a list of {{question_id, answer}}, got {kind(results)}")
    given: list[int] = []
    answers: dict[int, str] = {}
    for index, entry in enumerate(results):
        where = f"{place}: [{index}]"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: wants an object with question_id and answer, got {kind(entry)}")
        given.append(typed(where, entry, "question_id", int))
        answers[given[-1]] = typed(where, entry, "answer", str)
    asked = set(ids)
    faults = {
        "missing": [number for number in ids if number not in answers],
        "given more than once": [number for number, count in Counter(given).items() if count > 1],
        "unknown": [number for number in answers if number not in asked],
    }
    if any(faults.values()):
        problems = "; ".join(f"{name}: {listed(found, 20)}" for name, found in faults.items() if found)
        raise UserError(f"{place}: not one answer for each of the {len(ids)} questions: {problems}")
    return answers


def read_results(path: str | os.PathLike[str], ids: Sequence[int]) -> dict[int, str]:
    """A result file, made here or elsewhere. Raises `UserError` as `check_results` does."""
    return check_results(read_json(path), ids, os.fspath(path))


def write_results(path: Path, answers: Mapping[int, str], ids: Sequence[int]) -> None:
    """Check answers and write them as a result file, completely or not at all.

    Args:
        path: of the file.
        answers: by question id.
        ids: of the questions, in the order to write them in.

    Raises:
        UserError: As `check_results`.
    """
    check_results([{"question_id": n, "answer": answer} for n, answer in answers.items()], ids, os.fspath(path))
    write_list(path, [{"question_id": number, "answer": answers[number]} for number in ids])
