"""Images with predicted labels beside the true ones, in colours, for people to look at."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pela_vl.base.files import atomic_write
from pela_vl.report.overlays import grid, labelled

UNLABELLED = (0, 0, 0)
# powers of 1 / 1.2207, the root of x^4 = x + 1: points whose coordinates step by them fill a cube evenly
_STEPS = (0.8191725, 0.6710436, 0.5497005)
_CELL, _KEY_ROW, _KEY_WIDTH = 256, 20, 170


def class_colours(count: int) -> np.ndarray:
    """RGB uint8 [count, 3], the same for a class whatever the count."""
    hues, tints, shades = (np.arange(1, count + 1)[None] * np.array(_STEPS)[:, None]) % 1.0
    colours = [
        colorsys.hsv_to_rgb(hue, 0.4 + 0.6 * tint, 0.5 + 0.5 * shade)
        for hue, tint, shade in zip(hues, tints, shades, strict=True)
    ]
    return np.array([[round(255 * part) for part in colour] for colour in colours], np.uint8).reshape(count, 3)


def paint(image: Image.Image, labels: np.ndarray, classes: int, strength: float = 0.6) -> Image.Image:
    """The image with its labels' colours over it.

    Args:
        image: RGB, H x W.
        labels: Classes [H, W]; what is no class from 0 to `classes` - 1 is black.
        classes: How many there are.
        strength: Of the colours, 0 to 1.

    Raises:
        ValueError: If the sizes differ.
    """
    if labels.shape != (image.height, image.width):
        raise ValueError(f"labels of {labels.shape} do not fit an image of {(image.height, image.width)}")
    table = np.concatenate([class_colours(classes), [UNLABELLED]]).astype(np.uint8)
    number = np.where((labels >= 0) & (labels < classes), labels, classes)
    return Image.blend(image.convert("RGB"), Image.fromarray(table[number]), strength)


def segmentation_sheet(
    images: Sequence[Image.Image],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    names: Sequence[str],
    classes: Sequence[str],
) -> Image.Image:
    """Three panels an image: as it is, the true labels, the predicted ones; under them the colours of the classes shown.

    Args:
        images: RGB, H x W each.
        truths: Classes [H, W], 255 where unlabelled.
        predictions: Likewise.
        names: Of the images.
        classes: Names.
    """
    panels = []
    for image, truth, predicted, name in zip(images, truths, predictions, names, strict=True):
        counted = truth < len(classes)
        right = (truth == predicted)[counted].mean() if counted.any() else float("nan")
        views = ((image, name), (paint(image, truth, len(classes)), "truth"))
        for view, text in (
            *views,
            (paint(image, predicted, len(classes)), f"prediction: {right:.1%} of the pixels right"),
        ):
            panels.append(labelled(_boxed(view), text))
    shown = sorted(
        {int(label) for part in (*truths, *predictions) for label in np.unique(part) if label < len(classes)}
    )
    sheet, key = grid(panels, columns=6), _key(shown, classes, 6 * _CELL)
    whole = Image.new("RGB", (max(sheet.width, key.width), sheet.height + key.height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(key, (0, sheet.height))
    return whole


def draw_segmentation(path: Path, sheet: Image.Image) -> None:
    """Write a sheet as PNG, whole or not at all."""
    with atomic_write(path) as file:
        sheet.save(file, "PNG")


def _boxed(image: Image.Image) -> Image.Image:
    """On a white square of `_CELL` pixels, enlarged or reduced to fit, the ratio of the sides kept."""
    factor = _CELL / max(image.size)
    size = (max(round(image.width * factor), 1), max(round(image.height * factor), 1))
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
    square = Image.new("RGB", (_CELL, _CELL), "white")
    square.paste(image.convert("RGB").resize(size, how), ((_CELL - size[0]) // 2, (_CELL - size[1]) // 2))
    return square


def _key(shown: Sequence[int], classes: Sequence[str], width: int) -> Image.Image:
    columns = max(width // _KEY_WIDTH, 1)
    rows = -(-(len(shown) + 1) // columns)
    image = Image.new("RGB", (width, rows * _KEY_ROW + 8), "white")
    draw, font, colours = ImageDraw.Draw(image), ImageFont.load_default(12), class_colours(len(classes))
    entries = [(tuple(colours[label].tolist()), classes[label]) for label in shown] + [(UNLABELLED, "unlabelled")]
    for place, (colour, name) in enumerate(entries):
        x, y = place % columns * _KEY_WIDTH + 6, place // columns * _KEY_ROW + 6
        draw.rectangle((x, y, x + 14, y + 12), fill=colour)
        draw.text((x + 20, y - 1), name[:22], fill="black", font=font)
    return image
