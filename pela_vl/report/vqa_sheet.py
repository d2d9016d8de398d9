"""A sheet of questions, each with its image, the model's most probable answers and the people's answers."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pela_vl.base.files import atomic_write
from pela_vl.metrics.vqa_accuracy import question_accuracy

_COLUMNS, _IMAGE_PIXELS, _WIDTH, _MARGIN, _LINE = 4, 168, 430, 12, 19
_RIGHT, _PARTLY, _WRONG, _GREY, _BAR = "#1a7f37", "#9a6700", "#cf222e", "#57606a", "#d0d7de"


@dataclass(frozen=True)
class Answered:
    """One question on the sheet.

    Attributes:
        ranked: (answer, probability), best first.
        truth: what people answered; empty if not known.
    """

    image: Image.Image
    question: str
    ranked: Sequence[tuple[str, float]]
    truth: Sequence[str] = ()


def write_sheet(path: Path, questions: Sequence[Answered]) -> None:
    """Write a PNG. The first answer is green if fully right, amber if partly, red if wrong, grey without known answers."""
    height = _IMAGE_PIXELS + 2 * _MARGIN
    rows = -(-len(questions) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH, max(rows, 1) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, question in enumerate(questions):
        _draw(sheet, draw, question, i % _COLUMNS * _WIDTH + _MARGIN, i // _COLUMNS * height + _MARGIN)
    with atomic_write(path) as file:
        sheet.save(file, "PNG")


def spread(total: int, count: int) -> list[int]:
    """`count` evenly spaced indices of range(total), so that no one can have picked them; all where there are fewer."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def _draw(sheet: Image.Image, draw: ImageDraw.ImageDraw, question: Answered, x: int, y: int) -> None:
    image = question.image
    scale = _IMAGE_PIXELS / max(image.size)
    width, height = image.size
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    # small images, as those of scenes, are enlarged without smearing
    sheet.paste(image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC), (x, y))
    x, room = x + _IMAGE_PIXELS + 10, _WIDTH - _IMAGE_PIXELS - 2 * _MARGIN - 10
    font, small = ImageFont.load_default(14), ImageFont.load_default(13)
    lines = textwrap.wrap(question.question, 32)[:2]
    for line in lines:
        draw.text((x, y), line, fill="black", font=font)
        y += _LINE
    y += 3
    for place, (answer, probability) in enumerate(question.ranked):
        draw.rectangle((x, y + 1, x + room * probability, y + _LINE - 3), fill=_BAR)
        colour = _colour(answer, question.truth) if place == 0 else "black"
        draw.text((x + 3, y), _short(answer, 24), fill=colour, font=font)
        draw.text((x + room, y), f"{100 * probability:.0f} %", fill=_GREY, font=small, anchor="ra")
        y += _LINE
    said = Counter(question.truth).most_common(3)
    if said:
        text = ", ".join(f"{answer} ({count})" if count > 1 else answer for answer, count in said)
        draw.text((x, y + 3), "people: " + _short(text, 30), fill=_GREY, font=small)


def _colour(answer: str, truth: Sequence[str]) -> str:
    if not truth:
        return _GREY
    score = question_accuracy(answer, truth)
    return _RIGHT if score == 1 else _PARTLY if score > 0 else _WRONG


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
