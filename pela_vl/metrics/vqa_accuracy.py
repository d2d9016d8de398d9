"""VQA accuracy as the official evaluation computes it, including its quirks, which affect published numbers.

An answer scores min(#people who gave it / 3, 1), averaged over the ten ways of leaving one person out. Prediction and
answers are normalised first, but only if the people's answers differ: where all ten agree, "2" and "two" differ.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pela_vl.metrics.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS, PUNCTUATION

# The evaluator's pattern begins with "(?!<=\d)", which was meant to look behind but forbids the characters "<=" and a
# digit at a period, where they cannot stand. So what is left is any period that no digit follows.
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBER_COMMA = re.compile(r"\d,\d")
# It hands a flag to `re.sub` where that takes a count; the flag's value is 32, so later periods stay.
_MOST_PERIODS = 32
_ENOUGH = 3  # number of people who must give an answer for full accuracy


@dataclass(frozen=True)
class Truth:
    """The people's answers to a question (usually ten), and the types that it is counted under."""

    answers: tuple[str, ...]
    answer_type: str | None = None
    question_type: str | None = None


def normalize_answer(text: str) -> str:
    """The official normalisation: punctuation, lower case, number words, articles, contractions."""
    return _normalize_words(_normalize_punctuation(text))


def question_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy in [0, 1] of a prediction against what people answered.

    Raises ValueError without any answer.
    """
    if not answers:
        raise ValueError("accuracy needs at least one answer to compare with")
    prediction, answers = _flatten(prediction), [_flatten(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    matches = [answer == prediction for answer in answers]
    total = sum(matches)
    # Summed in the evaluator's order, so that the last bit agrees too.
    return float(sum(min(1, float(total - match) / _ENOUGH) for match in matches)) / len(matches)


def vqa_accuracy(predictions: Sequence[str], truths: Sequence[Truth]) -> dict[str, Any]:
    """Accuracy in percent: {"overall", "per_answer_type", "per_question_type"}, unrounded.

    The official tables round to two digits. A question without a class counts in "overall" alone.
    Raises ValueError when there is nothing to average or the lengths differ.
    """
    if not truths:
        raise ValueError("there is no question to compute an accuracy over")
    scores = [question_accuracy(p, truth.answers) for p, truth in zip(predictions, truths, strict=True)]
    by_answer: dict[str, list[float]] = defaultdict(list)
    by_question: dict[str, list[float]] = defaultdict(list)
    for score, truth in zip(scores, truths, strict=True):
        if truth.answer_type is not None:
            by_answer[truth.answer_type].append(score)
        if truth.question_type is not None:
            by_question[truth.question_type].append(score)
    return {
        "overall": _percent(scores),
        "per_answer_type": {name: _percent(by_answer[name]) for name in sorted(by_answer)},
        "per_question_type": {name: _percent(by_question[name]) for name in sorted(by_question)},
    }


def _percent(scores: list[float]) -> float:
    return 100 * float(sum(scores)) / len(scores)


def _flatten(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalize_punctuation(text: str) -> str:
    """Drop a mark that touches a space anywhere in the text, or any mark if a comma stands between digits.

    Other marks become spaces. Whether a mark touches a space is looked up in the text as it was given.
    """
    number = _NUMBER_COMMA.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        dropped = number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if dropped else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _normalize_words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
