"""Scenes with label images on disk, in ADE20K's layout: 18 classes, the shapes and the backgrounds.

An image is a pure function of (seed, split, index); the same bytes come out whatever the order of work.
"""

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from pela_vl.base.build_folder import alone, claim_folder
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_write

from .chunks import Job, run_jobs, split_jobs
from .draw import render
from .labels import SEGMENTATION_CLASSES, label_map
from .scene import SPLITS, sample_scene

GENERATOR_VERSION = 1  # raise it whenever the image or the labels of a given (seed, split, index) change
CHUNK = 200  # images
FOLDERS = {"train": "training", "val": "validation", "test": "test"}
_MANIFEST, _STARTED, _PARTS = "segmented.json", ".segmented.json", ".parts"


@dataclass(frozen=True)
class SegmentedRequest:
    """What decides the images: how many of each split, the seed, and their side in pixels."""

    train: int
    val: int
    test: int = 0
    seed: int = 0
    image_size: int = 128
    generator_version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        if self.train < 1 or self.val < 1 or self.test < 0:
            raise UserError(f"--train {self.train} --val {self.val} --test {self.test}: want 1, 1 and 0 at least")
        if not 32 <= self.image_size <= 512:
            raise UserError(f"--image-size {self.image_size}: must be from 32 to 512 pixels")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")


def build_segmented(request: SegmentedRequest, output: Path, workers: int = 1, report: bool = True) -> bool:
    """Write images/, annotations/ and objectInfo150.txt; True if there was something to do, False if it was complete.

    Chunks that an interrupted run finished are kept.

    Args:
        request: What to make.
        output: Folder.
        workers: Processes.
        report: Show progress.

    Raises:
        UserError: If the folder holds anything else.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    with alone(output):
        if not claim_folder(output, asdict(request), "set of scenes with labels", _MANIFEST, _STARTED):
            return False
        (output / _PARTS).mkdir(exist_ok=True)
        for split in SPLITS:
            for kind in ("images", "annotations") if getattr(request, split) else ():
                (output / kind / FOLDERS[split]).mkdir(parents=True, exist_ok=True)
        jobs = [job for job in split_jobs(request, CHUNK) if not _mark(output, job).exists()]
        run_jobs(partial(_make_chunk, request, output), jobs, request, output, "scenes", workers, report)
        with atomic_write(output / "objectInfo150.txt", "w") as file:
            file.write("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
            for number, name in enumerate(SEGMENTATION_CLASSES, 1):
                file.write(f"{number}\t0\t0\t0\t0\t{name}\n")
        counts = {split: getattr(request, split) for split in SPLITS}
        atomic_json(output / _MANIFEST, {"request": asdict(request), "images": counts})
        shutil.rmtree(output / _PARTS, ignore_errors=True)
        (output / _STARTED).unlink(missing_ok=True)
    return True


def _make_chunk(request: SegmentedRequest, output: Path, job: Job) -> int:
    """The images of one chunk; the mark appears only when all are written."""
    split, start, end = job
    try:
        for index in range(start, end):
            scene, name = sample_scene(request.seed, split, index), f"scene_{split}_{index:08d}"
            image = Image.fromarray(render(scene, request.image_size))
            image.save(output / "images" / FOLDERS[split] / f"{name}.jpg", "JPEG", quality=95, subsampling=0)
            labels = Image.fromarray(label_map(scene, request.image_size))
            labels.save(output / "annotations" / FOLDERS[split] / f"{name}.png", "PNG")
        _mark(output, job).touch()
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); mend that and run again") from None
    return end - start


def _mark(output: Path, job: Job) -> Path:
    return output / _PARTS / f"{job[0]}_{job[1]:08d}_{job[2]:08d}"
