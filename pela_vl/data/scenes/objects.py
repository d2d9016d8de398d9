"""Labelled images of single objects: one folder per class, colour x shape (100 classes) or colour x shape x texture
(400).

An image is a pure function of (seed, split, index). Classes are equally frequent up to one image.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pela_vl.base.errors import UserError

from .chunks import Job, Parts, SetKind, SetRequest, build_set, split_jobs
from .draw import render
from .scene import BACKGROUNDS, COLOURS, SHAPES, SPLITS, TEXTURES, Dice, Scene, Split, Thing

CHUNK = 500  # images
_STREAM = 7  # beside those of scene.py
_DIAMETERS = (0.6, 0.85)  # as fractions of the image's width: the object is what the image shows, as in ImageNet


@dataclass(frozen=True)
class ObjectRequest(SetRequest):
    """What decides the images.

    Args:
        textured: Whether textures are classes.
        plain: Whether every object is of one colour all over, which is learnt faster.
    """

    _: KW_ONLY
    image_size: int = 64
    generator_version: int = 2
    textured: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.textured and self.plain:
            raise UserError("--textured and --plain: textures cannot be classes where there is one; leave one out")

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their numbers: sorted, as `load_labelled` numbers folders."""
        if self.textured:
            return sorted(f"{c}_{s}_{t}" for c in COLOURS for s in SHAPES for t in TEXTURES)
        return sorted(f"{c}_{s}" for c in COLOURS for s in SHAPES)

    def jobs(self) -> list[Job]:
        """(split, first index, end index) of every chunk."""
        return split_jobs(self, CHUNK)


def sample_object(
    seed: int, split: Split, index: int, textured: bool = False, plain: bool = False
) -> tuple[Scene, str]:
    """A scene of one object, with varying size, place, background and, unless it is part of the class, texture.

    Args:
        seed: of the set.
        split: "train", "val" or "test".
        index: of the image in its split; it determines the class.
        textured: whether the texture is part of the class.
        plain: whether the texture is always "plain".

    Returns:
        The scene and the name of its class.
    """
    dice = Dice(seed, SPLITS.index(split), index, _STREAM)
    colour, rest = COLOURS[index % len(COLOURS)], index // len(COLOURS)
    shape, rest = SHAPES[rest % len(SHAPES)], rest // len(SHAPES)
    texture = TEXTURES[rest % len(TEXTURES)] if textured else "plain" if plain else dice.pick(TEXTURES)
    diameter = dice.uniform(*_DIAMETERS)
    margin = diameter / 2 + 2 / 64
    x, y = dice.uniform(margin, 1 - margin), dice.uniform(margin, 1 - margin)
    thing = Thing(colour, shape, "medium", texture, x, y, diameter)
    name = f"{colour}_{shape}" + (f"_{texture}" if textured else "")
    return Scene(seed, split, index, dice.pick(BACKGROUNDS), (thing,)), name


def build_objects(request: ObjectRequest, output: Path, workers: int = 1, report: bool = True) -> bool:
    """Write `output`/<split>/<class>/<index>.jpg. Chunks that an interrupted run finished are kept.

    Args:
        request: what to write.
        output: the folder.
        workers: processes, at least 1.
        report: show progress.

    Returns:
        False if the set was complete already.

    Raises:
        UserError: If the folder holds anything else.
    """
    return build_set(OBJECTS, request, output, workers, report)


def _make(request: ObjectRequest, output: Path, job: Job) -> None:
    """The images of one chunk."""
    split, start, end = job
    for index in range(start, end):
        scene, name = sample_object(request.seed, split, index, request.textured, request.plain)
        image = Image.fromarray(render(scene, request.image_size))
        image.save(output / split / name / f"{index:07d}.jpg", "JPEG", quality=95, subsampling=0)


def _complete(request: ObjectRequest, output: Path, parts: Parts, announce: Callable[[str], None]) -> dict[str, Any]:
    return {"classes": request.classes}


def _folders(request: ObjectRequest, split: Split) -> list[str]:
    return [f"{split}/{name}" for name in request.classes]


OBJECTS = SetKind("set of single objects", "objects.json", "objects", CHUNK, _folders, _make, _complete)
