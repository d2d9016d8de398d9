"""Scenes with boxes and masks on disk, in COCO's layout: 10 classes, the shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pela_vl.base.files import atomic_json

from .chunks import Job, Parts, SetKind, SetRequest, build_set
from .draw import render
from .labels import visible_masks
from .scene import SHAPES, SPLITS, Split, sample_scene

LEAST_PIXELS = 16
"""Visible pixels of an object that is annotated; hidden ones are left out."""


def build_detected(request: SetRequest, output: Path, workers: int = 1, report: bool = True) -> bool:
    """Write images/<split>/ and <split>.json; True if there was something to do, False if it was complete.

    Chunks that an interrupted run finished are kept.

    Args:
        request: What to make.
        output: Folder.
        workers: Processes.
        report: Show progress.

    Raises:
        UserError: If the folder holds anything else.
    """
    return build_set(DETECTED, request, output, workers, report)


def _make(request: SetRequest, output: Path, job: Job) -> dict[str, Any]:
    """The images of one chunk; returns its images and annotations."""
    split, start, end = job
    images, annotations = [], []
    size = request.image_size
    for index in range(start, end):
        scene, name = sample_scene(request.seed, split, index), f"{split}/{index:08d}.jpg"
        image = Image.fromarray(render(scene, size))
        image.save(output / "images" / name, "JPEG", quality=95, subsampling=0)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for thing, mask in zip(scene.things, visible_masks(scene, size), strict=True):
            if mask.sum() >= LEAST_PIXELS:
                annotations.append(_annotation(index + 1, 1 + SHAPES.index(thing.shape), mask))
    return {"images": images, "annotations": annotations}


def _annotation(image: int, category: int, mask: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    box, area = coco_mask.toBbox(packed).tolist(), int(coco_mask.area(packed))
    mask_of = {"size": list(packed["size"]), "counts": packed["counts"].decode()}
    found = {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
    return {**found, "segmentation": mask_of}


def _complete(request: SetRequest, output: Path, parts: Parts, announce: Callable[[str], None]) -> dict[str, Any]:
    """Write the annotations of every split."""
    for split in SPLITS:
        found = [part for job, part in parts() if job[0] == split]
        if found:
            atomic_json(output / f"{split}.json", _document(found))
    return {}


def _document(parts: list[dict[str, Any]]) -> dict[str, Any]:
    annotations = [annotation for part in parts for annotation in part["annotations"]]
    return {
        "images": [image for part in parts for image in part["images"]],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(SHAPES, 1)],
    }


def _folders(request: SetRequest, split: Split) -> list[str]:
    return [f"images/{split}"]


DETECTED = SetKind("set of scenes with objects", "detected.json", "scenes", 200, _folders, _make, _complete)
