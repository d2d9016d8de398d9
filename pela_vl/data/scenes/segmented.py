"""Scenes with label images on disk, in ADE20K's layout: 18 classes, the shapes and the backgrounds."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from pela_vl.base.files import atomic_write

from .chunks import Job, Parts, SetKind, SetRequest, build_set
from .draw import render
from .labels import SEGMENTATION_CLASSES, label_map
from .scene import Scene, Split, sample_scene

FOLDERS: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class SegmentedRequest(SetRequest):
    """What decides the images.

    Args:
        plain: Whether every object is of one colour all over, as in single objects of that kind.
    """

    _: KW_ONLY
    plain: bool = False


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
    return build_set(SEGMENTED, request, output, workers, report)


def _scene(request: SegmentedRequest, split: Split, index: int) -> Scene:
    scene = sample_scene(request.seed, split, index)
    if request.plain:
        scene = replace(scene, things=tuple(replace(thing, texture="plain") for thing in scene.things))
    return scene


def _make(request: SegmentedRequest, output: Path, job: Job) -> None:
    """The images of one chunk."""
    split, start, end = job
    for index in range(start, end):
        scene, name = _scene(request, split, index), f"scene_{split}_{index:08d}"
        image = Image.fromarray(render(scene, request.image_size))
        image.save(output / "images" / FOLDERS[split] / f"{name}.jpg", "JPEG", quality=95, subsampling=0)
        labels = Image.fromarray(label_map(scene, request.image_size))
        labels.save(output / "annotations" / FOLDERS[split] / f"{name}.png", "PNG")


def _complete(request: SetRequest, output: Path, parts: Parts, announce: Callable[[str], None]) -> dict[str, Any]:
    """Write the names of the classes."""
    with atomic_write(output / "objectInfo150.txt", "w") as file:
        file.write("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
        for number, name in enumerate(SEGMENTATION_CLASSES, 1):
            file.write(f"{number}\t0\t0\t0\t0\t{name}\n")
    return {}


def _folders(request: SetRequest, split: Split) -> list[str]:
    return [f"{kind}/{FOLDERS[split]}" for kind in ("images", "annotations")]


SEGMENTED = SetKind("set of scenes with labels", "segmented.json", "scenes", 200, _folders, _make, _complete)
