"""Scenes with boxes and masks on disk, in COCO's layout: 10 classes, the shapes.

An image is a pure function of (seed, split, index); the same bytes come out whatever the order of work.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pela_vl.base.build_folder import alone, claim_folder
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json

from .chunks import Job, run_jobs, split_jobs
from .draw import render
from .labels import visible_masks
from .scene import SHAPES, SPLITS, sample_scene

GENERATOR_VERSION = 1  # raise it whenever the image or the objects of a given (seed, split, index) change
CHUNK = 200  # images
LEAST_PIXELS = 16
"""Visible pixels of an object that is annotated; hidden ones are left out."""
_MANIFEST, _STARTED, _PARTS = "detected.json", ".detected.json", ".parts"


@dataclass(frozen=True)
class DetectedRequest:
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


def build_detected(request: DetectedRequest, output: Path, workers: int = 1, report: bool = True) -> bool:
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
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    with alone(output):
        if not claim_folder(output, asdict(request), "set of scenes with objects", _MANIFEST, _STARTED):
            return False
        (output / _PARTS).mkdir(exist_ok=True)
        for split in SPLITS:
            if getattr(request, split):
                (output / "images" / split).mkdir(parents=True, exist_ok=True)
        jobs = split_jobs(request, CHUNK)
        left = [job for job in jobs if not _part(output, job).exists()]
        run_jobs(partial(_make_chunk, request, output), left, request, output, "scenes", workers, report)
        for split in SPLITS:
            parts = [json.loads(_part(output, job).read_text(encoding="utf-8")) for job in jobs if job[0] == split]
            if parts:
                atomic_json(output / f"{split}.json", _document(parts))
        counts = {split: getattr(request, split) for split in SPLITS}
        atomic_json(output / _MANIFEST, {"request": asdict(request), "images": counts})
        shutil.rmtree(output / _PARTS, ignore_errors=True)
        (output / _STARTED).unlink(missing_ok=True)
    return True


def _document(parts: list[dict[str, Any]]) -> dict[str, Any]:
    annotations = [annotation for part in parts for annotation in part["annotations"]]
    return {
        "images": [image for part in parts for image in part["images"]],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(SHAPES, 1)],
    }


def _make_chunk(request: DetectedRequest, output: Path, job: Job) -> int:
    """The images of one chunk; its annotations appear only when all are written."""
    split, start, end = job
    images, annotations = [], []
    size = request.image_size
    try:
        for index in range(start, end):
            scene, name = sample_scene(request.seed, split, index), f"{split}/{index:08d}.jpg"
            image = Image.fromarray(render(scene, size))
            image.save(output / "images" / name, "JPEG", quality=95, subsampling=0)
            images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
            for thing, mask in zip(scene.things, visible_masks(scene, size), strict=True):
                if mask.sum() >= LEAST_PIXELS:
                    annotations.append(_annotation(index + 1, 1 + SHAPES.index(thing.shape), mask))
        atomic_json(_part(output, job), {"images": images, "annotations": annotations})
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); mend that and run again") from None
    return end - start


def _annotation(image: int, category: int, mask: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    box, area = coco_mask.toBbox(packed).tolist(), int(coco_mask.area(packed))
    mask_of = {"size": list(packed["size"]), "counts": packed["counts"].decode()}
    found = {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}
    return {**found, "segmentation": mask_of}


def _part(output: Path, job: Job) -> Path:
    return output / _PARTS / f"{job[0]}_{job[1]:08d}_{job[2]:08d}.json"
