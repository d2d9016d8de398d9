"""Heat maps and boxes drawn on images. Needs Pillow alone."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = Sequence[float]  # x, y, width, height in pixels of the image

CHOSEN, TRUE = (255, 40, 40), (60, 220, 60)
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
# dark blue, blue, cyan, yellow, red: from cold to hot, at equal distances
_COLOURS = np.array([(0, 0, 130), (0, 80, 255), (0, 220, 220), (255, 230, 0), (255, 0, 0)], dtype=np.float64)
_LABEL = 22  # pixels


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a heat map [H, W], its minimum cold and its maximum hot; a flat map is cold."""
    low, high = float(heat.min()), float(heat.max())
    level = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    places = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(level, places, _COLOURS[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def blend(image: Image.Image, heat: np.ndarray, strength: float = 0.5) -> Image.Image:
    """Lay a heat map over an image.

    Args:
        image: of any mode.
        heat: [H, W], of the image's size; any range, see `heat_colours`.
        strength: weight of the heat map, from 0 to 1.

    Raises:
        ValueError: If the sizes differ.
    """
    if heat.shape != (image.height, image.width):
        raise ValueError(f"a heat map of {heat.shape} does not fit an image of {(image.height, image.width)}")
    return Image.blend(image.convert("RGB"), Image.fromarray(heat_colours(heat)), strength)


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[Box, tuple[int, int, int]]]) -> Image.Image:
    """A copy with boxes in their colours, lines drawn inside."""
    image = image.copy()
    draw, width = ImageDraw.Draw(image), max(1, min(image.size) // 100)
    for (x, y, w, h), colour in boxes:
        draw.rectangle((x, y, max(x + w - 1, x), max(y + h - 1, y)), outline=colour, width=width)
    return image


def labelled(image: Image.Image, text: str, least_side: int = 192) -> Image.Image:
    """Put a line of text above an image.

    Args:
        image: enlarged where its shorter side has fewer than `least_side` pixels.
        text: cut to fit.
        least_side: pixels.
    """
    factor = max(1.0, least_side / min(image.size))
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.NEAREST)
    font = ImageFont.load_default(13)
    while text and font.getlength(text) > image.width - 8:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    panel = Image.new("RGB", (image.width, image.height + _LABEL), _PAPER)
    panel.paste(image, (0, _LABEL))
    ImageDraw.Draw(panel).text((4, 3), text, fill=_INK, font=font)
    return panel


def grid(panels: Sequence[Image.Image], columns: int = 5) -> Image.Image:
    """Panels of one size in rows, in reading order."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, height = panels[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), _PAPER)
    for k, panel in enumerate(panels):
        sheet.paste(panel, (k % columns * width, k // columns * height))
    return sheet


def grounding_overlay(image: Image.Image, heat: np.ndarray, text: str, true: Box, chosen: Box | None) -> Image.Image:
    """One expression: heat map, true box in green, chosen box in red, the expression above.

    Args:
        image: the image.
        heat: [H, W], of the image's size.
        text: the expression.
        true: [x, y, width, height] in pixels.
        chosen: likewise; None where no box was chosen.

    Raises:
        ValueError: If heat map and image differ in size.
    """
    boxes = [(true, TRUE)] + ([(chosen, CHOSEN)] if chosen is not None else [])
    return labelled(draw_boxes(blend(image, heat), boxes), text)
