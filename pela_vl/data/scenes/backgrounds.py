"""Procedural backgrounds: one large cached canvas per kind, of which an image takes a window."""

from functools import cache

import numpy as np
from PIL import Image

from .scene import BACKGROUNDS

_SPAN = 4  # a canvas is this many images wide


@cache
def canvas(kind: str, image_size: int) -> np.ndarray:
    """float32 [4 s, 4 s, 3], 0..255, s = image_size."""
    extent = _SPAN * image_size
    rng = np.random.default_rng([7919, BACKGROUNDS.index(kind)])
    unit = image_size / 64
    base = _PAINTERS[kind](extent, unit, rng)
    return (base + rng.normal(0, 5, (extent, extent, 3))).clip(0, 255).astype(np.float32)


@cache
def grain(image_size: int) -> np.ndarray:
    """Unit noise, float32 [2 s, 2 s, 3], that images take windows of."""
    extent = 2 * image_size
    return np.random.default_rng([7919, 99]).standard_normal((extent, extent, 3), dtype=np.float32)


def _clouds(extent: int, cells_x: int, cells_y: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise, roughly -1..1, [extent, extent, 1], with cells_x by cells_y cells."""
    small = rng.normal(0, 1, (cells_y, cells_x)).astype(np.float32)
    image = Image.fromarray(small, mode="F").resize((extent, extent), Image.Resampling.BICUBIC)
    return np.asarray(image)[:, :, None] * 0.6


def _tone(*rgb: float) -> np.ndarray:
    return np.array(rgb, np.float32)


def _grass(extent: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    blades = _clouds(extent, int(extent / (1.3 * unit)), int(extent / (6 * unit)), rng)
    return _tone(104, 146, 78) + blades * _tone(20, 24, 14) + _clouds(extent, 12, 12, rng) * _tone(14, 14, 8)


def _sand(extent: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    dunes = _clouds(extent, 10, int(extent / (9 * unit)), rng)
    specks = rng.normal(0, 9, (extent, extent, 1))
    return _tone(218, 196, 146) + dunes * _tone(12, 13, 15) + specks


def _sky(extent: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    puffs = (_clouds(extent, int(extent / (26 * unit)), int(extent / (16 * unit)), rng) - 0.1).clip(0, 0.9) / 0.9
    return _tone(136, 190, 238) + puffs**0.6 * _tone(96, 52, 14)


def _night(extent: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    base = (
        _tone(26, 28, 62) + _clouds(extent, 12, 12, rng) * _tone(7, 7, 14) + np.zeros((extent, extent, 1), np.float32)
    )
    count = extent * extent // int(150 * unit * unit)
    rows, columns = rng.integers(0, extent - 2, (2, count))
    glow = rng.uniform(60, 190, (count, 1)).astype(np.float32)
    dot = max(1, round(unit))
    for i in range(dot):
        for j in range(dot):
            base[np.minimum(rows + i, extent - 1), np.minimum(columns + j, extent - 1)] += glow
    return base


def _brick(extent: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    height, width, joint = 8 * unit, 17 * unit, 1.2 * unit
    y, x = np.mgrid[0:extent, 0:extent].astype(np.float32)
    row = (y // height).astype(int)
    shifted = x + (row % 2) * width / 2
    tint = rng.normal(0, 12, (row.max() + 1, int(extent / width) + 2))[row, (shifted // width).astype(int)][:, :, None]
    brick = _tone(166, 96, 78) + tint
    mortar = ((y % height < joint) | (shifted % width < joint))[:, :, None]
    return np.where(mortar, _tone(196, 188, 178), brick)


def _wood(extent: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    x = np.arange(extent, dtype=np.float32)[None, :]
    plank = np.floor(x / (21 * unit)).astype(int)
    tint = rng.normal(0, 9, plank.max() + 1)[plank][:, :, None]
    fibre = _clouds(extent, int(extent / (2.2 * unit)), 14, rng)
    seam = (x % (21 * unit) < 1.1 * unit)[:, :, None]
    board = _tone(176, 132, 84) + tint + fibre * _tone(22, 20, 16)
    return np.where(seam, _tone(92, 64, 40), board)


def _water(extent: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    waves = _clouds(extent, int(extent / (11 * unit)), int(extent / (2.6 * unit)), rng)
    foam = (waves - 0.75).clip(0, 0.5) * 2
    return _tone(64, 132, 166) + waves * _tone(18, 24, 24) + foam * _tone(70, 50, 40)


def _snow(extent: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    drifts = _clouds(extent, 14, int(extent / (14 * unit)), rng)
    flakes = (rng.random((extent, extent, 1)) < 0.02) * 14.0
    return _tone(224, 230, 240) + drifts * _tone(13, 10, 6) + flakes


_PAINTERS = {
    "grass": _grass,
    "sand": _sand,
    "sky": _sky,
    "night": _night,
    "brick": _brick,
    "wood": _wood,
    "water": _water,
    "snow": _snow,
}
