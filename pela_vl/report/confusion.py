"""A confusion matrix as an image: counts, with the fraction of the true class as shade."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pela_vl.base.files import atomic_write

_CELL, _LEFT, _TOP, _EDGE = 120, 150, 90, 20
_DARK = (31, 95, 170)


def draw_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, path: Path) -> None:
    """Write a confusion matrix as PNG.

    Args:
        matrix: counts [C][C], a row per true class, a column per predicted one.
        classes: C names.
        title: above the matrix.
        path: of the PNG.

    Raises:
        UserError: Where the disk refuses.
    """
    length = _CELL * len(classes)
    image = Image.new("RGB", (_LEFT + length + _EDGE, _TOP + length + _EDGE + 24), "white")
    draw, font, small = ImageDraw.Draw(image), ImageFont.load_default(17), ImageFont.load_default(14)
    draw.text((_EDGE, 14), title, fill="black", font=font)
    draw.text((_LEFT + length / 2, 50), "predicted", fill="#57606a", font=small, anchor="mm")
    draw.text((_EDGE, _TOP - 22), "true", fill="#57606a", font=small)
    for i, name in enumerate(classes):
        draw.text((_LEFT - 10, _TOP + _CELL * (i + 0.5)), name, fill="black", font=small, anchor="rm")
        draw.text((_LEFT + _CELL * (i + 0.5), _TOP - 14), name, fill="black", font=small, anchor="mm")
        total = sum(matrix[i])
        for j, count in enumerate(matrix[i]):
            fraction = count / total if total else 0.0
            shade = tuple(round(255 + (dark - 255) * fraction) for dark in _DARK)
            x, y = _LEFT + _CELL * j, _TOP + _CELL * i
            draw.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), fill=shade)
            ink = "white" if fraction > 0.5 else "black"
            draw.text((x + _CELL / 2, y + _CELL / 2 - 10), f"{count:,}", fill=ink, font=font, anchor="mm")
            draw.text((x + _CELL / 2, y + _CELL / 2 + 14), f"{100 * fraction:.1f} %", fill=ink, font=small, anchor="mm")
    with atomic_write(path) as file:
        image.save(file, "PNG")
