"""Images with their true objects beside what a detector found, for people to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pela_vl.report.overlays import draw_boxes, grid, labelled

Box = Sequence[float]  # x, y, width, height in pixels of the image
_SHADE = 0.45


@dataclass(frozen=True)
class Drawn:
    """An object to draw: box, class, and mask bool [H, W] or None. score: None for a true object."""

    box: Box
    name: str
    mask: np.ndarray | None = None
    score: float | None = None


def class_colour(number: int) -> tuple[int, int, int]:
    """A colour for each class; those of neighbouring numbers differ."""
    hue = (number * 0.61803398875) % 1.0
    return tuple(int(255 * max(0.0, min(1.0, abs((hue * 6 + shift) % 6 - 3) - 1))) for shift in (0, 4, 2))  # type: ignore[return-value]


def draw_objects(image: Image.Image, objects: Sequence[Drawn], classes: Sequence[str]) -> Image.Image:
    """The image with masks shaded, boxes and names in the colours of their classes.

    Args:
        image: RGB.
        objects: The last one is on top.
        classes: Names in the order of their colours.
    """
    number = {name: place for place, name in enumerate(classes)}
    pixels = np.asarray(image, dtype=np.float32)
    for thing in objects:
        if thing.mask is not None:
            shade = np.asarray(class_colour(number[thing.name]), dtype=np.float32)
            mixed = (1 - _SHADE) * pixels + _SHADE * shade
            pixels = np.where(thing.mask[:, :, None], mixed, pixels)
    colours = [class_colour(number[thing.name]) for thing in objects]
    drawn = draw_boxes(
        Image.fromarray(pixels.round().astype(np.uint8)),
        [(thing.box, colour) for thing, colour in zip(objects, colours, strict=True)],
    )
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(max(9, min(image.size) // 28))
    for thing, colour in zip(objects, colours, strict=True):
        text = thing.name if thing.score is None else f"{thing.name} {thing.score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        x = max(min(thing.box[0], drawn.width - (right - left) - 3), 0)
        y = thing.box[1] - (bottom - top) - 2
        y = y if y >= 0 else max(thing.box[1], 0)  # above the box, or inside where there is no room
        draw.rectangle((x, y, x + right - left + 2, y + bottom - top + 1), fill=colour)
        draw.text((x + 1 - left, y + 1 - top), text, fill=_ink(colour), font=font)
    return drawn


def _ink(paper: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read on a colour: their contrasts (WCAG) are equal at a luminance of 0.179."""
    parts = [((part / 255 + 0.055) / 1.055) ** 2.4 if part > 10 else part / 255 / 12.92 for part in paper]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def enlarged(image: Image.Image, objects: Sequence[Drawn], pixels: int) -> tuple[Image.Image, list[Drawn]]:
    """An image and its objects so large that lines and names drawn into it are sharp; as they are if that large already.

    Args:
        image: RGB.
        objects: In its pixels.
        pixels: Of the longer side, at least.
    """
    factor = pixels / max(image.size)
    if factor <= 1:
        return image, list(objects)
    size = round(image.width * factor), round(image.height * factor)
    found = []
    for thing in objects:
        mask = thing.mask
        if mask is not None:
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        found.append(Drawn([part * factor for part in thing.box], thing.name, mask, thing.score))
    return image.resize(size, Image.Resampling.BICUBIC), found


def detection_sheet(
    rows: Sequence[tuple[str, Image.Image, Sequence[Drawn], Sequence[Drawn]]], classes: Sequence[str], width: int = 320
) -> Image.Image:
    """A row an image: its true objects on the left, what was found on the right.

    Args:
        rows: Name, image, true objects and detections of each.
        classes: Names in the order of their colours.
        width: Pixels a side of a panel.
    """
    panels = []
    for name, image, truth, found in rows:
        for text, objects in ((f"{name}: {len(truth)} true", truth), (f"{len(found)} found", found)):
            panel = draw_objects(*enlarged(image, objects, width), classes)
            square = Image.new("RGB", (max(panel.size),) * 2, (255, 255, 255))
            square.paste(panel)
            panels.append(labelled(square.resize((width, width), Image.Resampling.BICUBIC), text))
    return grid(panels, columns=4 if len(rows) > 1 else 2)
