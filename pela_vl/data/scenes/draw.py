"""A scene as pixels, and the boxes of its objects."""

from dataclasses import dataclass

import numpy as np

from .backgrounds import canvas, grain
from .masks import ANGLES, BORDER, PHASES, shape_masks, texture_mask
from .scene import PIXELS, Dice, Scene, Thing

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 32),
    "green": (24, 150, 48),
    "blue": (34, 70, 220),
    "yellow": (250, 222, 40),
    "purple": (130, 40, 180),
    "orange": (248, 132, 16),
    "pink": (255, 144, 192),
    "brown": (112, 62, 24),
    "white": (248, 248, 248),
    "black": (20, 20, 22),
}
_DARK, _LIGHT = np.array((24, 24, 28), np.float32), np.array((240, 240, 236), np.float32)
_LUMA = (0.299, 0.587, 0.114)

Box = tuple[int, int, int, int]


def render(scene: Scene, image_size: int) -> np.ndarray:
    """uint8 [s, s, 3]."""
    dice = scene.dice(PIXELS)
    pixels = _background(scene.background, image_size, dice)
    _clutter(pixels, image_size, dice)
    for thing in scene.things:
        _draw(pixels, thing, image_size, dice)
    _specks(pixels, image_size, dice, dice.below(5))
    return (pixels + 0.5).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class ObjectMask:
    """The pixels that an object with its outline covers by more than half: bool [h, w] from (top, left)."""

    top: int
    left: int
    inside: np.ndarray

    @property
    def box(self) -> Box:
        rows, columns = np.flatnonzero(self.inside.any(1)), np.flatnonzero(self.inside.any(0))
        x, y = int(columns[0]), int(rows[0])
        return self.left + x, self.top + y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1

    @property
    def area(self) -> int:
        return int(self.inside.sum())

    def runs(self, image_size: int) -> list[int]:
        """COCO's uncompressed run lengths over the whole image: column by column, beginning with pixels outside."""
        height, width = self.inside.shape
        full = np.zeros((image_size, image_size), bool)
        full[self.top : self.top + height, self.left : self.left + width] = self.inside
        flat = full.T.reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        lengths = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
        return [0, *lengths] if flat[0] else lengths


def object_masks(scene: Scene, image_size: int) -> list[ObjectMask]:
    """Masks in the order of `scene.things`, including what another object hides."""
    found = []
    for thing in scene.things:
        top, left, diameter, angle = _pose(thing, image_size)
        whole = shape_masks(thing.shape, diameter, angle, _outline(image_size))[1]
        found.append(ObjectMask(top, left, whole[:, :, 0] > 0.5))
    return found


def boxes(scene: Scene, image_size: int) -> list[Box]:
    """(x, y, width, height) in pixels of each object with its outline, in the order of `scene.things`."""
    return [mask.box for mask in object_masks(scene, image_size)]


def _pose(thing: Thing, image_size: int) -> tuple[int, int, int, int]:
    """(top, left, diameter) in pixels and the angle's index, which comes from the place: boxes need no pixels."""
    diameter = round(thing.diameter * image_size)
    left = round(thing.x * image_size - diameter / 2) - BORDER
    top = round(thing.y * image_size - diameter / 2) - BORDER
    limit = image_size - diameter - 2 * BORDER
    angle = int(thing.x * 7919 + thing.y * 104729) % len(ANGLES)
    return min(max(top, 0), limit), min(max(left, 0), limit), diameter, angle


def _outline(image_size: int) -> float:
    return min(0.8 * image_size / 64, BORDER - 0.2)


def _background(kind: str, size: int, dice: Dice) -> np.ndarray:
    large, noise = canvas(kind, size), grain(size)
    y, x = dice.below(3 * size), dice.below(3 * size)
    pixels = (
        large[y : y + size, x : x + size]
        * np.array([dice.uniform(0.95, 1.05) for _ in range(3)], np.float32)
        * np.float32(dice.uniform(0.88, 1.1))
    )
    y, x = dice.below(size), dice.below(size)
    pixels += noise[y : y + size, x : x + size] * np.float32(dice.uniform(2, 8))
    ramp = np.linspace(-1, 1, size, dtype=np.float32) * np.float32(dice.uniform(-16, 16))
    pixels += ramp[:, None, None] if dice.chance(0.5) else ramp[None, :, None]
    return pixels


def _clutter(pixels: np.ndarray, size: int, dice: Dice) -> None:
    """Faint blobs, thin lines and specks that no text mentions."""
    for _ in range(dice.below(4)):
        reach = int(dice.uniform(0.08, 0.2) * size)
        y, x = dice.below(size - reach), dice.below(size - reach)
        bump = np.hanning(reach + 2)[1:-1].astype(np.float32)
        shade = np.array([dice.uniform(-70, 70) for _ in range(3)], np.float32)
        pixels[y : y + reach, x : x + reach] += (bump[:, None] * bump[None, :])[:, :, None] * shade
    for _ in range(dice.below(4)):
        steps = np.linspace(0, 1, 2 * size, dtype=np.float32)
        x0, y0, x1, y1 = (dice.uniform(0, size - 1) for _ in range(4))
        rows, columns = (y0 + (y1 - y0) * steps).astype(np.intp), (x0 + (x1 - x0) * steps).astype(np.intp)
        shade = np.array([dice.uniform(0, 255) for _ in range(3)], np.float32)
        pixels[rows, columns] = pixels[rows, columns] * 0.55 + shade * 0.45
    _specks(pixels, size, dice, 4 + dice.below(14))


def _specks(pixels: np.ndarray, size: int, dice: Dice, count: int) -> None:
    dot = max(1, round(size / 64))
    for _ in range(count):
        y, x = dice.below(size - 2 * dot), dice.below(size - 2 * dot)
        shade = (dice.uniform(0, 255), dice.uniform(0, 255), dice.uniform(0, 255))
        pixels[y : y + dot * (1 + dice.below(2)), x : x + dot] = shade


def _draw(pixels: np.ndarray, thing: Thing, size: int, dice: Dice) -> None:
    top, left, diameter, angle = _pose(thing, size)
    fill, whole = shape_masks(thing.shape, diameter, angle, _outline(size))
    pattern = texture_mask(thing.texture, diameter, dice.below(PHASES))
    base = np.array([value + dice.uniform(-10, 10) for value in PALETTE[thing.colour]], np.float32)
    edge = _DARK if sum(weight * float(value) for weight, value in zip(_LUMA, base, strict=True)) > 100 else _LIGHT
    extent = diameter + 2 * BORDER
    window = pixels[top : top + extent, left : left + extent]
    window += whole * (edge - window)
    window += fill * (base + pattern * (_second(thing.colour, base) - base) - window)


def _second(colour: str, base: np.ndarray) -> np.ndarray:
    """The pattern's colour: far from `base`, and such that black with a pattern is not white with one."""
    if colour in ("white", "black"):
        return base * 0.2 + (110 if colour == "white" else 100)
    return base * 0.16 if colour in ("yellow", "orange", "pink") else base * 0.25 + _LIGHT * 0.75
