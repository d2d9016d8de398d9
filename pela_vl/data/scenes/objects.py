"""Labelled images of single objects: one folder per class, colour x shape (100 classes) or colour x shape x texture
(400).

An image is a pure function of (seed, split, index). Classes are equally frequent up to one image.
"""

import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from pela_vl.base.build_folder import alone, claim_folder, follow_parent
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.base.progress import Progress

from .draw import render
from .scene import BACKGROUNDS, COLOURS, SHAPES, SPLITS, TEXTURES, Dice, Scene, Split, Thing

GENERATOR_VERSION = 1  # raise it whenever the image of a given (seed, split, index) changes
CHUNK = 500  # images
_STREAM = 7  # beside those of scene.py
_DIAMETERS = (16 / 64, 44 / 64)  # as fractions of the image's width
_MANIFEST, _STARTED, _PARTS = "objects.json", ".objects.json", ".parts"

Job = tuple[Split, int, int]


@dataclass(frozen=True)
class ObjectRequest:
    """What determines the images.

    Attributes:
        train, val, test: number of images of each split.
        seed: of all draws.
        image_size: width and height in pixels.
        textured: whether textures are classes.
    """

    train: int
    val: int
    test: int = 0
    seed: int = 0
    image_size: int = 64
    textured: bool = False
    generator_version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        if self.train < 1 or self.val < 1 or self.test < 0:
            raise UserError(f"--train {self.train} --val {self.val} --test {self.test}: want 1, 1 and 0 at least")
        if not 32 <= self.image_size <= 512:
            raise UserError(f"--image-size {self.image_size}: must be from 32 to 512 pixels")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their numbers: sorted, as `load_labelled` numbers folders."""
        if self.textured:
            return sorted(f"{c}_{s}_{t}" for c in COLOURS for s in SHAPES for t in TEXTURES)
        return sorted(f"{c}_{s}" for c in COLOURS for s in SHAPES)

    def jobs(self) -> list[Job]:
        """(split, first index, end index) of every chunk."""
        return [
            (split, start, min(start + CHUNK, getattr(self, split)))
            for split in SPLITS
            for start in range(0, getattr(self, split), CHUNK)
        ]


def sample_object(seed: int, split: Split, index: int, textured: bool = False) -> tuple[Scene, str]:
    """A scene of one object, with varying size, place, background and, unless it is part of the class, texture.

    Args:
        seed: of the set.
        split: "train", "val" or "test".
        index: of the image in its split; it determines the class.
        textured: whether the texture is part of the class.

    Returns:
        The scene and the name of its class.
    """
    dice = Dice(seed, SPLITS.index(split), index, _STREAM)
    colour, rest = COLOURS[index % len(COLOURS)], index // len(COLOURS)
    shape, rest = SHAPES[rest % len(SHAPES)], rest // len(SHAPES)
    texture = TEXTURES[rest % len(TEXTURES)] if textured else dice.pick(TEXTURES)
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
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    with alone(output):
        if not claim_folder(output, asdict(request), "set of single objects", _MANIFEST, _STARTED):
            return False
        parts = output / _PARTS
        parts.mkdir(exist_ok=True)
        for split in SPLITS:
            for name in request.classes if getattr(request, split) else ():
                (output / split / name).mkdir(parents=True, exist_ok=True)
        jobs = [job for job in request.jobs() if not _mark(output, job).exists()]
        _run(request, output, jobs, workers, report)
        counts = {split: getattr(request, split) for split in SPLITS}
        content = {"request": asdict(request), "classes": request.classes, "images": counts}
        atomic_json(output / _MANIFEST, content)
        shutil.rmtree(parts, ignore_errors=True)
        (output / _STARTED).unlink(missing_ok=True)
    return True


def _run(request: ObjectRequest, output: Path, jobs: list[Job], workers: int, report: bool) -> None:
    total = request.train + request.val + request.test
    left = sum(end - start for _, start, end in jobs)
    with Progress(total, "objects", initial=total - left, unit="image", enabled=report) as progress:
        if workers == 1 or len(jobs) < 2:
            for job in jobs:
                progress.update(_make_chunk(request, output, job))
            return
        # Spawned, not forked: the caller may hold threads.
        pool = ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn"), follow_parent, (os.getpid(),))
        try:
            for future in as_completed([pool.submit(_make_chunk, request, output, job) for job in jobs]):
                progress.update(future.result())
        except BrokenProcessPool:
            raise UserError(
                f"{output}: a worker was killed (out of memory?); run the same command again to go on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _make_chunk(request: ObjectRequest, output: Path, job: Job) -> int:
    """The images of one chunk; the mark appears only when all are written."""
    split, start, end = job
    try:
        for index in range(start, end):
            scene, name = sample_object(request.seed, split, index, request.textured)
            image = Image.fromarray(render(scene, request.image_size))
            image.save(output / split / name / f"{index:07d}.jpg", "JPEG", quality=95, subsampling=0)
        _mark(output, job).touch()
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); mend that and run again") from None
    return end - start


def _mark(output: Path, job: Job) -> Path:
    return output / _PARTS / f"{job[0]}_{job[1]:08d}_{job[2]:08d}"
