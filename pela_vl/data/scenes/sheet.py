"""The contact sheet: images with one caption each, to see at a glance what a corpus holds."""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pela_vl.base.files import atomic_write

from .captions import PER_IMAGE, captions
from .draw import render
from .scene import sample_scene

_COLUMNS, _ROWS, _IMAGE_PIXELS, _CELL = 8, 5, 192, (216, 268)


def write_contact_sheet(path: Path, seed: int, image_size: int, available: int) -> None:
    """Write a PNG of the first validation images, enlarged, with one caption each.

    Args:
        path: of the PNG.
        seed: of the corpus.
        image_size: of its images, in pixels.
        available: number of validation images; at most 40 are shown.
    """
    width, height = _CELL
    sheet = Image.new("RGB", (_COLUMNS * width, _ROWS * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index in range(min(available, _COLUMNS * _ROWS)):
        scene = sample_scene(seed, "val", index)
        x, y = index % _COLUMNS * width + (width - _IMAGE_PIXELS) // 2, index // _COLUMNS * height + 8
        image = Image.fromarray(render(scene, image_size)).resize(
            (_IMAGE_PIXELS, _IMAGE_PIXELS), Image.Resampling.NEAREST
        )
        sheet.paste(image, (x, y))
        lines = textwrap.wrap(captions(scene)[index % PER_IMAGE], 28)
        draw.multiline_text((x, y + _IMAGE_PIXELS + 3), "\n".join(lines), fill="black", font=font, spacing=1)
    with atomic_write(path, "wb") as file:
        sheet.save(file, "PNG")
