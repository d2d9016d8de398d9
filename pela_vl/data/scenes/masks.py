"""Anti-aliased masks of the shapes and textures, computed once for each size and kept."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

_SUPER = 6  # sub-pixels across a pixel
ANGLES = (-14.0, -7.0, 0.0, 7.0, 14.0)  # degrees; small enough that a square is no diamond
PHASES = 3
BORDER = 2  # pixels around the diameter, for the outline


@cache
def shape_masks(shape: str, diameter: int, angle: int, outline: float) -> tuple[np.ndarray, np.ndarray]:
    """Anti-aliased masks of a shape, cached.

    Args:
        shape: one of SHAPES.
        diameter: pixels.
        angle: index into ANGLES.
        outline: its width in pixels.

    Returns:
        (fill, fill and outline), each float32 [s, s, 1] in 0..1 with s = diameter + 2 * BORDER.
    """
    width = (diameter + 2 * BORDER) * _SUPER
    image = Image.new("L", (width, width), 0)
    _paint(image, shape, diameter * _SUPER / 2, math.radians(ANGLES[angle]))
    inside = np.asarray(image)
    return _shrink(inside), _shrink(_widen(inside, max(1, round(outline * _SUPER))))


@cache
def texture_mask(texture: str, diameter: int, phase: int) -> np.ndarray:
    """Opacity of a texture's second colour, cached.

    Args:
        texture: one of TEXTURES.
        diameter: of the shape, in pixels.
        phase: shift of the texture, in range(PHASES).

    Returns:
        float32 [s, s, 1] in 0..1 with s = diameter + 2 * BORDER.
    """
    pixels = diameter + 2 * BORDER
    if texture == "plain":
        return np.zeros((pixels, pixels, 1), np.float32)
    width = pixels * _SUPER
    period = max(4.0, diameter / 4.6)
    grid = (np.arange(width) + 0.5) / _SUPER + phase * period / PHASES
    x, y = grid[None, :], grid[:, None]
    if texture == "striped":
        lean = 0.5 * (phase - 1)
        mask = ((x * lean + y) / (period * 1.05)) % 1.0 < 0.45
    elif texture == "checkered":
        mask = ((x // (period * 0.75)) + (y // (period * 0.75))) % 2 < 1
    else:
        row = y // (period * 0.95)
        u = ((x + (row % 2) * period / 2) / period) % 1.0 - 0.5
        v = (y / (period * 0.95)) % 1.0 - 0.5
        mask = u * u + v * v < 0.32**2
    return _shrink(np.broadcast_to(mask, (width, width)) * np.uint8(255))


def _widen(mask: np.ndarray, reach: int) -> np.ndarray:
    """Each sub-pixel takes the highest value in the square of 2 * reach + 1 around it."""
    width = mask.shape[0]
    padded = np.pad(mask, reach)  # a turned triangle's corners come near the edge
    rows = np.maximum.reduce([padded[shift : shift + width] for shift in range(2 * reach + 1)])
    return np.maximum.reduce([rows[:, shift : shift + width] for shift in range(2 * reach + 1)])


def _shrink(mask: np.ndarray) -> np.ndarray:
    width = mask.shape[0] // _SUPER
    return (mask.reshape(width, _SUPER, width, _SUPER).mean((1, 3), dtype=np.float32) / 255)[:, :, None]


def _paint(image: Image.Image, shape: str, radius: float, angle: float) -> None:
    """Fill `shape`, reaching `radius` from the middle, into an L image."""
    centre = image.width / 2
    draw = ImageDraw.Draw(image)

    def disc(reach: float, value: int, dx: float = 0.0, dy: float = 0.0) -> None:
        box = (centre + dx - reach, centre + dy - reach, centre + dx + reach, centre + dy + reach)
        draw.ellipse(box, fill=value)

    def polygon(points: list[tuple[float, float]]) -> None:
        cos, sin = math.cos(angle), math.sin(angle)
        draw.polygon(
            [(centre + radius * (x * cos - y * sin), centre + radius * (x * sin + y * cos)) for x, y in points],
            fill=255,
        )

    if shape == "circle":
        disc(radius, 255)
    elif shape == "ring":
        disc(radius, 255)
        disc(radius * 0.48, 0)
    elif shape == "crescent":
        disc(radius, 255)
        bite = Image.new("L", image.size, 255)
        reach, dx, dy = radius * 0.86, radius * 0.55 * math.cos(angle), radius * 0.55 * math.sin(angle)
        box = (centre + dx - reach, centre + dy - reach, centre + dx + reach, centre + dy + reach)
        ImageDraw.Draw(bite).ellipse(box, fill=0)
        image.paste(ImageChops.multiply(image, bite))
    elif shape == "square":
        polygon([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)])
    elif shape == "diamond":
        polygon([(0, -1), (0.68, 0), (0, 1), (-0.68, 0)])
    elif shape == "triangle":
        polygon([(0, -0.95), (1, 0.85), (-1, 0.85)])
    elif shape == "hexagon":
        polygon([(math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)) for k in range(6)])
    elif shape == "star":
        spokes = [(1.05 if k % 2 == 0 else 0.44, k * math.pi / 5 - math.pi / 2) for k in range(10)]
        polygon([(reach * math.cos(a), reach * math.sin(a)) for reach, a in spokes])
    elif shape == "cross":
        w = 0.34
        arm = [
            (w, -1),
            (w, -w),
            (1, -w),
            (1, w),
            (w, w),
            (w, 1),
            (-w, 1),
            (-w, w),
            (-1, w),
            (-1, -w),
            (-w, -w),
            (-w, -1),
        ]
        polygon([(x, y) for x, y in arm])
    elif shape == "heart":
        turns = [2 * math.pi * k / 60 for k in range(60)]
        polygon(
            [
                (
                    math.sin(t) ** 3,
                    -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
                )
                for t in turns
            ]
        )
    else:
        raise ValueError(f"unknown shape {shape}")
