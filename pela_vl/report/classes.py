"""The classes that a classifier recognises worst, as an image: the recall of each and its most frequent confusion."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pela_vl.base.files import atomic_write

_ROW, _NAME, _BAR, _TEXT, _TOP = 26, 230, 320, 330, 80
_FILL, _EMPTY, _GREY = (31, 95, 170), (226, 232, 240), "#57606a"


def worst_classes(matrix: np.ndarray, most: int) -> list[int]:
    """Numbers of the classes with images, the least recognised first, ties by number. matrix: counts [C, C], rows true."""
    totals, hits = matrix.sum(1), np.diag(matrix)
    present = np.flatnonzero(totals)
    return present[np.argsort(hits[present] / totals[present], kind="stable")][:most].tolist()


def draw_worst_classes(matrix: np.ndarray, classes: Sequence[str], title: str, path: Path, most: int = 20) -> None:
    """Write a PNG with one bar a class: its recall and the most frequent wrong class.

    Args:
        matrix: Counts [C, C]: a row a true class, a column a predicted one.
        classes: Their names.
        title: Above the bars.
        path: File to write.
        most: Classes to show.
    """
    chosen = worst_classes(matrix, most)
    image = Image.new("RGB", (_NAME + _BAR + _TEXT, _TOP + _ROW * len(chosen) + 20), "white")
    draw, font, small = ImageDraw.Draw(image), ImageFont.load_default(17), ImageFont.load_default(14)
    draw.text((20, 14), title, fill="black", font=font)
    draw.text((20, 44), f"the {len(chosen)} classes recognised worst", fill=_GREY, font=small)
    for row, number in enumerate(chosen):
        counts, y = matrix[number], _TOP + _ROW * row
        total, hits = int(counts.sum()), int(counts[number])
        draw.text((_NAME - 10, y + 9), classes[number], fill="black", font=small, anchor="rm")
        draw.rectangle((_NAME, y, _NAME + _BAR, y + _ROW - 8), fill=_EMPTY)
        if hits:
            draw.rectangle((_NAME, y, _NAME + round(_BAR * hits / total), y + _ROW - 8), fill=_FILL)
        wrong = np.delete(counts, number)
        text = f"{100 * hits / total:.0f} % of {total}"
        if wrong.size and wrong.max():
            taken = int(wrong.argmax())
            taken += taken >= number
            text += f"; {int(wrong.max())} as {classes[taken]}"
        draw.text((_NAME + _BAR + 12, y + 9), text, fill=_GREY, font=small, anchor="lm")
    with atomic_write(path) as file:
        image.save(file, "PNG")
