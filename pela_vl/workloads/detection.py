"""Object detection and instance segmentation (COCO): Cascade Mask R-CNN, measured by box and mask AP.

Shapes: B images, H x W pixels, G objects of an image.
"""

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pela_vl.base.distributed import from_main
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json, atomic_write
from pela_vl.checkpoints.detection_loading import KIND, load_detector, rules_of
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.data.detection_transforms import DetectionTransform, FixedTransform
from pela_vl.data.sets.coco_file import CocoImage, learned, rasterise
from pela_vl.data.sets.detection import DetectionBatch, DetectionEval, DetectionImages, collate_detection
from pela_vl.evaluation.detection import Result, detect_all
from pela_vl.metrics.average_precision import average_precision
from pela_vl.models.vision.boxes import Truth
from pela_vl.models.vision.cascade import CascadeDetector, Pyramid
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.report.detections import Drawn, detection_sheet
from pela_vl.settings import Settings
from pela_vl.workloads.base import (
    Evaluation,
    RunModel,
    StepOutput,
    Task,
    TrainingStep,
    check_augmentation,
    require_training_files,
    test_or_val,
)

REPORTED = ("ap", "ap50", "ap75")
"""Of COCO's numbers, what a run's log has."""
SHOWN_SCORE = 0.3
"""Least score of a detection that is drawn."""


class DetectorPass:
    """One forward pass of a detector's backbone and pyramid on a batch, made when it is first read.

    Args:
        model: The detector.
        batch: images [B, 3, H, W].
        keep_hidden: Keep the outputs of the blocks.
    """

    def __init__(self, model: CascadeDetector, batch: Any, keep_hidden: bool = True):
        self.model, self.batch, self.keep_hidden = model, batch, keep_hidden

    @cached_property
    def pyramid(self) -> Pyramid:
        return self.model.pyramid(self.batch.images, self.keep_hidden)

    def features(self, streams: Collection[str] | None = None) -> Features:
        """The blocks' outputs as the stream "blocks"."""
        embedded = self.pyramid.embedded
        inputs = {} if embedded is None else {"blocks": embedded}
        return Features({name: self.pyramid.hidden for name in streams or ("blocks",)}, inputs=inputs)


class DetectionStep(TrainingStep[CascadeDetector]):
    """Losses of the proposal network and of every stage of the cascade, see `CascadeDetector.losses`."""

    def forward(self, batch: DetectionBatch, prepared: Any) -> StepOutput:
        states = DetectorPass(self.model, batch, self.keep_features)
        sizes = [(height, width) for height, width in batch.sizes.tolist()]
        terms = self.model.losses(states.pyramid, sizes, truths(batch))
        return StepOutput(terms, states.features() if self.keep_features else Features())


def truths(batch: DetectionBatch) -> list[Truth]:
    """The objects of each image of a batch."""
    found = []
    for number in range(len(batch)):
        one = batch.owners == number
        masks = None if batch.masks is None else batch.masks[one]
        found.append(Truth(batch.boxes[one], batch.labels[one], masks))
    return found


class Detection(Task[CascadeDetector]):
    """The classes are the categories of the training file, once it was read; before that those of the checkpoint."""

    title = "object detection"
    foreign_size = True
    kind = KIND
    evaluated_in_own_dtype = False  # a box of 1,000 pixels is 4 pixels coarse in bf16; under autocast boxes stay fp32

    def __init__(self) -> None:
        self.classes: tuple[str, ...] | None = None

    def check(self, settings: Settings) -> None:
        losses, detection = settings.losses, settings.detection
        for name in ("itc", "itm", "mlm", "logits"):
            if getattr(losses, name):
                raise UserError(f"losses.{name}: {self.title} has no such term; leave it out")
        if losses.fd_features != "blocks":
            raise UserError(f"losses.fd_features: {self.title} has blocks alone")
        if settings.train.ema:
            raise UserError(f"train.ema: {self.title} has no EMA model; leave it out")
        check_augmentation(settings)
        if not detection.short or min(*detection.short, detection.long, detection.test_short) < 32:
            raise UserError("detection.short, long, test_short: want sides of 32 pixels at least")
        rules_of(detection)

    def load(self, settings: Settings, checkpoint: str | None) -> LoadedModel[CascadeDetector]:
        return load_detector(settings.model, settings.detection, checkpoint, self.classes)

    def run(self, model: CascadeDetector, batch: Any, keep_hidden: bool = True) -> DetectorPass:
        """A forward pass of backbone and pyramid that runs when it is first read.

        Args:
            model: The student's or the teacher's detector.
            batch: images [B, 3, H, W].
            keep_hidden: Keep the outputs of the blocks, which distillation needs.
        """
        return DetectorPass(model, batch, keep_hidden)

    def step(
        self,
        settings: Settings,
        model: CascadeDetector,
        keep_features: bool,
        teacher: FrozenTeacher[CascadeDetector] | None,
    ) -> DetectionStep:
        """The training step.

        Args:
            settings: detection.masks must fit the model.
            model: The detector to train.
            keep_features: Keep the outputs of the blocks.
            teacher: Not used; methods read it.

        Raises:
            UserError: If masks are to be learned and the model has no mask heads.
        """
        if settings.detection.masks and not model.mask_heads:
            raise UserError("detection.masks: the checkpoint's detector has no mask heads; set it to false")
        return DetectionStep(model, None, 0.0, keep_features)

    def training_data(self, settings: Settings) -> DetectionImages:
        data, detection = settings.data, settings.detection
        files = require_training_files(settings)
        found = DetectionImages(
            files, data.image_root, detection.masks, settings.train.seed, detection.keep_empty, data.cache_mb
        )
        self.classes = found.classes
        return found

    def train_transform(self, settings: Settings, header: Header) -> Any:
        detection, flips = settings.detection, settings.data.hflip
        return DetectionTransform(detection.short, detection.long, flips, detection.crop, header.normalization)

    def collate(self, settings: Settings, header: Header) -> Callable[[list[Any]], DetectionBatch]:
        return collate_detection

    def calibration(
        self, settings: Settings, loaded: LoadedModel[CascadeDetector], data: Any, show: bool
    ) -> Callable[[nn.Module], None]:
        """There is none: factors for real inputs are made before fine-tuning, by the pre-training stage.

        Args:
            settings: Not used.
            loaded: Not used.
            data: Not used.
            show: Not used.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"compress.init: {self.title} starts from factors that the pre-training stage made; compress there, or use svd"
        )

    def tests(self, settings: Settings) -> dict[str, str]:
        """The test file, or the validation file if there is none: of COCO the one that the field reports."""
        return test_or_val(settings)

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> DetectionEval:
        """The images of an annotation file.

        Args:
            settings: detection.test_short and long, and data.image_root.
            run: The detector; its header names the classes.
            file: In COCO's layout.

        Raises:
            UserError: If the checkpoint names no classes, or the file has a category that is none of them.
        """
        names = run.header.notes.get("classes")
        if not names:
            raise UserError(f"{file}: the checkpoint does not say what its classes are")
        detection = settings.detection
        transform = FixedTransform(detection.test_short, detection.long, run.header.normalization)
        return DetectionEval(file, settings.data.image_root, names, transform, bool(run.model.mask_heads))

    def evaluate(self, settings: Settings, run: RunModel, data: DetectionEval) -> Evaluation:
        """box_ap, box_ap50, box_ap75 and, where model and file have masks, mask_ap, mask_ap50, mask_ap75, in percent.

        The best weights are those of the highest box_ap, which "mean" repeats. The record has all of COCO's numbers.

        Args:
            settings: `data.workers`.
            run: The detector.
            data: The test.
        """
        found = detect_all(run.model, data, run.world, run.autocast, settings.data.workers)
        kinds = {"box": "bbox"}
        if data.masks:
            kinds["mask"] = "segm"

        def measure() -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
            document = data.document()
            both = {name: average_precision(document, found, kind) for name, kind in kinds.items()}
            return {name: one[0] for name, one in both.items()}, {name: one[1] for name, one in both.items()}

        numbers, per_class = from_main(measure)
        metrics = {f"{kind}_{name}": one[name] for kind, one in numbers.items() for name in REPORTED if name in one}
        metrics["mean"] = metrics.get("box_ap", 0.0)
        record = {"images": len(data), "detections": len(found), "numbers": numbers, "per_class": per_class}
        return Evaluation(metrics, record, found)

    def write(self, settings: Settings, evaluation: Evaluation, data: DetectionEval, folder: Path, split: str) -> None:
        """Write detections_<split>.json, in the form that COCO's evaluation reads, and images_<split>.png.

        Args:
            settings: `drawings.overlays`.
            evaluation: Of `evaluate`; its details are the detections.
            data: The test.
            folder: Of the run.
            split: "test" or "val"; part of the files' names.
        """
        atomic_json(folder / f"detections_{split}.json", evaluation.details)
        rows = [
            (image.file_name, data.read(image), _true(image, data), _found(image, data, evaluation.details))
            for image in _spread(data, settings.drawings.overlays)
        ]
        if rows:
            with atomic_write(folder / f"images_{split}.png") as file:
                detection_sheet(rows, data.classes).save(file, "PNG")


def _spread(data: DetectionEval, count: int) -> list[CocoImage]:
    """So many images, evenly spread over the file."""
    total = len(data)
    return (
        [data.file.images[place * total // count] for place in range(count)] if count < total else [*data.file.images]
    )


def _true(image: CocoImage, data: DetectionEval) -> list[Drawn]:
    names, found = data.file.categories, []
    for annotation in learned(image):
        mask = rasterise(annotation["segmentation"], image).astype(bool) if annotation.get("segmentation") else None
        found.append(Drawn(annotation["bbox"], names[annotation["category_id"]], mask))
    return found


def _found(image: CocoImage, data: DetectionEval, results: list[Result]) -> list[Drawn]:
    names, found = data.file.categories, []
    for result in results:
        if result["image_id"] == image.number and result["score"] >= SHOWN_SCORE:
            mask = result.get("segmentation")
            shown: np.ndarray | None = None if mask is None else rasterise(mask, image).astype(bool)
            found.append(Drawn(result["bbox"], names[result["category_id"]], shown, result["score"]))
    return found[::-1]
