"""What a scene holds, and how one is sampled: a pure function of (seed, split, index)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "brown", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart", "crescent", "hexagon")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = ("grass", "sand", "sky", "night", "brick", "wood", "water", "snow")

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Relation = Literal["left", "right", "above", "below"]
Item = TypeVar("Item")

# Streams keep what is random in one part of a scene (its layout, its pixels, each kind of text) independent of the
# others, so that a change to, say, the questions leaves images and captions as they are.
LAYOUT, PIXELS, CAPTIONS, REFERRING, QUESTIONS, ENTAILMENT, CANDIDATES = range(7)

# Diameters as fractions of the image's width: 12-14, 17-19 and 24-26 pixels at 64.
_DIAMETERS = {"small": (12 / 64, 14 / 64), "medium": (17 / 64, 19 / 64), "large": (24 / 64, 26 / 64)}
_COUNTS = (2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4)
_TEXTURE_DRAW = ("plain", "plain", "striped", "dotted", "checkered")
_HELD_OUT_PERCENT = 8  # of all signatures, for val and likewise for test
_GAP = 1 / 64


class Dice:
    """A numpy Generator seeded by a key. Scalars are drawn in blocks, because single draws from numpy are slow."""

    def __init__(self, *key: int) -> None:
        self.rng = np.random.default_rng(key)
        self._block: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._block:
            self._block = self.rng.random(64).tolist()
        return low + (high - low) * self._block.pop()

    def below(self, count: int) -> int:
        return int(self.uniform() * count)

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different positions of `items`, in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object; `x`, `y` (centre, y down) and `diameter` (of its box) are fractions of the image's width."""

    colour: str
    shape: str
    size: str
    texture: str
    x: float = 0.5
    y: float = 0.5
    diameter: float = 0.25

    @property
    def kind(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True, slots=True)
class Scene:
    seed: int
    split: Split
    index: int
    background: str
    things: tuple[Thing, ...]

    def dice(self, stream: int) -> Dice:
        return Dice(self.seed, SPLITS.index(self.split), self.index, stream)


def signature(background: str, things: Sequence[Thing]) -> str:
    """What is in an image, regardless of where. Scenes of different splits never have the same signature."""
    return "|".join([background, *sorted(f"{t.colour} {t.shape} {t.size} {t.texture}" for t in things)])


def split_of(mark: str) -> Split:
    """The one split that may hold scenes of this signature, by its hash."""
    bucket = int.from_bytes(hashlib.blake2b(mark.encode(), digest_size=4).digest(), "big") % 100
    if bucket < _HELD_OUT_PERCENT:
        return "val"
    return "test" if bucket < 2 * _HELD_OUT_PERCENT else "train"


def sample_scene(seed: int, split: Split, index: int) -> Scene:
    """Sample a scene of 2 to 4 objects with little overlap, no two of the same colour and shape.

    Args:
        seed: of the corpus.
        split: "train", "val" or "test"; signatures of scenes do not cross splits.
        index: of the scene in its split.
    """
    dice = Dice(seed, SPLITS.index(split), index, LAYOUT)
    while True:
        background, bare = dice.pick(BACKGROUNDS), _bare_things(dice)
        if split_of(signature(background, bare)) == split:
            return Scene(seed, split, index, background, _lay_out(bare, dice))


def _bare_things(dice: Dice) -> list[Thing]:
    things: list[Thing] = []
    count = dice.pick(_COUNTS)
    while len(things) < count:
        thing = Thing(dice.pick(COLOURS), dice.pick(SHAPES), dice.pick(SIZES), dice.pick(_TEXTURE_DRAW))
        if all(thing.kind != other.kind for other in things):
            things.append(thing)
    return things


def _lay_out(bare: Sequence[Thing], dice: Dice) -> tuple[Thing, ...]:
    """Random places, the largest object first. Of several tries the one with the least overlap is kept."""
    order = sorted(bare, key=lambda thing: -SIZES.index(thing.size))
    best: tuple[Thing, ...] = ()
    best_gap = -np.inf
    for _ in range(8):
        placed: list[Thing] = []
        worst = np.inf
        for thing in order:
            spot, gap = _place(thing, placed, dice)
            placed.append(spot)
            worst = min(worst, gap)
        if worst > best_gap:
            best, best_gap = tuple(placed), worst
        if best_gap >= _GAP:
            break
    return best


def _place(thing: Thing, placed: Sequence[Thing], dice: Dice) -> tuple[Thing, float]:
    diameter = dice.uniform(*_DIAMETERS[thing.size])
    margin = diameter / 2 + 2 / 64
    best, best_gap = (0.5, 0.5), -np.inf
    for _ in range(16):
        x, y = dice.uniform(margin, 1 - margin), dice.uniform(margin, 1 - margin)
        # Boxes, not circles: a square's corners count.
        gap = min(
            (max(abs(x - o.x), abs(y - o.y)) - (diameter + o.diameter) / 2 for o in placed),
            default=np.inf,
        )
        if gap > best_gap:
            best, best_gap = (x, y), gap
        if gap >= _GAP:
            break
    return Thing(thing.colour, thing.shape, thing.size, thing.texture, *best, diameter), best_gap


def relations(a: Thing, b: Thing) -> list[Relation]:
    """How `a` lies to `b`, by centres, with a margin that leaves no doubt to the eye."""
    dx, dy = a.x - b.x, a.y - b.y
    found: list[Relation] = []
    if abs(dx) >= max(0.17, 0.7 * abs(dy)):
        found.append("left" if dx < 0 else "right")
    if abs(dy) >= max(0.17, 0.7 * abs(dx)):
        found.append("above" if dy < 0 else "below")
    return found


def places(thing: Thing) -> list[str]:
    """Parts of the image that the object's centre is clearly in: left, right, top, bottom or middle."""
    found = []
    if abs(thing.x - 0.5) > 0.16:
        found.append("left" if thing.x < 0.5 else "right")
    if abs(thing.y - 0.5) > 0.16:
        found.append("top" if thing.y < 0.5 else "bottom")
    if max(abs(thing.x - 0.5), abs(thing.y - 0.5)) < 0.1:
        found.append("middle")
    return found
