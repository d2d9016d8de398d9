"""Semantic segmentation (ADE20K): cross-entropy of UperNet and its auxiliary head, measured by mIoU at the original size.

Shapes: B images, S pixels a side of a crop, K classes, h x w places, H x W pixels of an original image, T images of a test.
"""

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pela_vl.base.distributed import gather_objects, gather_rows, world_size
from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_write
from pela_vl.base.progress import Progress
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.checkpoints.segmentation_loading import KIND, Heads, load_uper
from pela_vl.data.label_images import IGNORED, LabelValues, label_image_names, read_label_values, to_png
from pela_vl.data.loader import make_loader
from pela_vl.data.normalization import IMAGENET, Normalization
from pela_vl.data.segmentation_transforms import CropTransform, MiddleTransform, WholeTransform
from pela_vl.data.sets.segmentation import (
    PairReader,
    SegmentedBatch,
    SegmentedEval,
    SegmentedImages,
    collate_segmented,
    load_pairs,
)
from pela_vl.evaluation.segmentation import label_pixels, predict_whole, predict_windows
from pela_vl.metrics.segmentation import class_ious, pixel_confusion, segmentation_metrics
from pela_vl.models.vision.uper import Encoded, UperNet, UperOutput
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.report.segments import draw_segmentation, segmentation_sheet
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
from pela_vl.workloads.calibration import draw
from pela_vl.workloads.image_calibration import ImageCalibration


class SegmentationPass:
    """One forward pass of a UperNet on a batch, whose parts are made when they are first read.

    Args:
        model: The model.
        batch: images [B, 3, S, S].
        keep_hidden: Keep the outputs of the blocks.
    """

    def __init__(self, model: UperNet, batch: Any, keep_hidden: bool = True):
        self.model, self.batch, self.keep_hidden = model, batch, keep_hidden

    @cached_property
    def encoded(self) -> Encoded:
        return self.model.encode(self.batch.images, self.keep_hidden)

    @cached_property
    def output(self) -> UperOutput:
        return self.model.decode(self.encoded.maps)

    def features(self, streams: Collection[str] | None = None) -> Features:
        """The blocks' outputs as the stream "blocks"; the heads are not run for them."""
        encoded = self.encoded
        places = {"blocks": encoded.kept} if encoded.kept is not None else {}
        inputs = {"blocks": encoded.embedded} if encoded.embedded is not None else {}
        return Features({"blocks": encoded.hidden}, places=places, inputs=inputs)


class SegmentationStep(TrainingStep[UperNet]):
    """Cross-entropy of the UperNet head (term "ce") and, weighted, of the auxiliary head (term "auxiliary").

    Args:
        model: The model to train.
        keep_features: Return the hidden states that distillation pairs.
        auxiliary: Weight of the auxiliary term.
    """

    def __init__(self, model: UperNet, keep_features: bool, auxiliary: float):
        super().__init__(model, keep_features=keep_features)
        self.auxiliary = auxiliary

    def forward(self, batch: SegmentedBatch, prepared: None) -> StepOutput:
        states = SegmentationPass(self.model, batch, self.keep_features)
        output, labels = states.output, batch.labels.long()
        loss, hits = pixel_cross_entropy(output.logits, labels)
        terms = {"ce": loss}
        if output.auxiliary is not None and self.auxiliary:
            terms["auxiliary"] = self.auxiliary * pixel_cross_entropy(output.auxiliary, labels)[0]
        features = states.features() if self.keep_features else Features()
        return StepOutput(terms, features, {"accuracy": hits})


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """mmseg's loss: logits resized to the labels' size, and the sum over labelled pixels divided by the number of all pixels.

    Args:
        logits: [B, K, h, w].
        labels: int64 [B, S, S], `IGNORED` where unlabelled.

    Returns:
        The loss, and the share of labelled pixels that are right (0 where none is labelled).
    """
    whole = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(whole, labels, ignore_index=IGNORED, reduction="sum") / labels.numel()
    counted = labels != IGNORED
    right = (whole.detach().argmax(1) == labels) & counted
    return loss, right.sum() / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class Predictions:
    """Of a test. images: the predicted label image of each of T images, a PNG file's bytes. confusion [K, K]: of all pixels."""

    images: list[bytes]
    confusion: np.ndarray


@dataclass
class SegmentationTest:
    """What an evaluation works on."""

    images: SegmentedEval
    values: LabelValues


class Segmentation(Task[UperNet]):
    """The classes, and their values in label images, are those of segmentation.classes."""

    title = "semantic segmentation"
    foreign_size = True
    kind = KIND
    evaluated_in_own_dtype = True

    def check(self, settings: Settings) -> None:
        losses, options, train = settings.losses, settings.segmentation, settings.train
        for name in ("itc", "itm", "mlm", "logits"):
            if getattr(losses, name):
                raise UserError(f"losses.{name}: {self.title} has no such term; leave it out")
        if losses.fd_features != "blocks":
            raise UserError(f"losses.fd_features: {losses.fd_features} is for image classification; leave it out")
        if train.ema:
            raise UserError(f"train.ema: {self.title} keeps no EMA model; leave it out")
        if train.batch_size * world_size() < 2:
            raise UserError("train.batch_size 1: batch normalisation wants two images at least, over all processes")
        check_augmentation(settings)
        if options.auxiliary < 0 or options.tile_mb <= 0 or options.batch < 1 or options.stride < 1:
            raise UserError(
                f"segmentation.auxiliary {options.auxiliary}, tile_mb {options.tile_mb}, batch {options.batch}, stride "
                f"{options.stride}: want 0 at least, above 0, and 1 at least"
            )
        _values(settings)
        _transform(settings, 1, IMAGENET)
        _whole(settings, IMAGENET)

    def load(self, settings: Settings, checkpoint: str | None) -> LoadedModel[UperNet]:
        options = settings.segmentation
        heads = Heads(options.channels, options.auxiliary_channels, options.dropout)
        return load_uper(settings.model, checkpoint, _values(settings).classes, heads)

    def run(self, model: UperNet, batch: Any, keep_hidden: bool = True) -> SegmentationPass:
        """The forward pass that student and teacher make alike.

        Args:
            model: The student's or the teacher's model.
            batch: images [B, 3, S, S].
            keep_hidden: Keep the blocks' outputs.
        """
        return SegmentationPass(model, batch, keep_hidden)

    def step(
        self, settings: Settings, model: UperNet, keep_features: bool, teacher: FrozenTeacher | None
    ) -> SegmentationStep:
        """The training step.

        Args:
            settings: `segmentation.auxiliary`.
            model: The model, in its final shape.
            keep_features: Its output brings the blocks' outputs.
            teacher: Not used.
        """
        return SegmentationStep(model, keep_features, settings.segmentation.auxiliary)

    def training_data(self, settings: Settings) -> SegmentedImages:
        """Raises UserError for fewer than two images, of which no batch can be normalised."""
        data = settings.data
        pairs = load_pairs(require_training_files(settings), data.image_root)
        if len(pairs) < 2:
            raise UserError(f"{data.train[0]}: one image; batch normalisation wants two at least")
        read = PairReader(data.image_root, _values(settings), data.cache_mb)
        return SegmentedImages(pairs, read, None, settings.train.seed)

    def train_transform(self, settings: Settings, header: Header) -> Any:
        """A `CropTransform`, which takes labels beside the image."""
        return _transform(settings, header.config.image_size, header.normalization)

    def collate(self, settings: Settings, header: Header) -> Callable[[list[Any]], SegmentedBatch]:
        return collate_segmented

    def calibration(
        self, settings: Settings, loaded: LoadedModel[UperNet], data: Any, show: bool
    ) -> Callable[[nn.Module], None]:
        """Runs the model on the middle of training images, not augmented.

        Args:
            settings: `compress.samples` and `segmentation.scale`.
            loaded: The dense model; its header gives the size.
            data: The training set; its transform is left as found.
            show: Show a progress bar.
        """
        longest, shortest = settings.segmentation.scale
        transform = MiddleTransform(loaded.header.config.image_size, (longest, shortest), loaded.header.normalization)
        return ImageCalibration(data, draw(len(data), settings.compress.samples), transform, show)

    def tests(self, settings: Settings) -> dict[str, str]:
        """The test set, or the validation set if there is none: of ADE20K the one that the field reports."""
        return test_or_val(settings)

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> SegmentationTest:
        """Test images with their labels.

        Args:
            settings: `segmentation.classes`, `segmentation.scale` and data.image_root.
            run: The model.
            file: A list.

        Raises:
            UserError: If the model has another number of classes than segmentation.classes, or windows would leave pixels out.
        """
        values, stride, size = _values(settings), settings.segmentation.stride, run.image_size
        if settings.segmentation.mode == "slide" and not 1 <= stride <= size:
            raise UserError(
                f"segmentation.stride {stride}: windows of model.image_size {size} want 1 to {size}, such as {2 * size // 3}"
            )
        if len(values.classes) != run.header.config.labels:
            raise UserError(
                f"{settings.segmentation.classes}: {len(values.classes)} classes, but the model has {run.header.config.labels}"
            )
        read = PairReader(settings.data.image_root, values)
        return SegmentationTest(
            SegmentedEval(
                load_pairs([file], settings.data.image_root), read, _whole(settings, run.header.normalization)
            ),
            values,
        )

    def evaluate(self, settings: Settings, run: RunModel, data: SegmentationTest) -> Evaluation:
        """mIoU, mAcc, aAcc, and mean, which is mIoU.

        Args:
            settings: The section `segmentation`, and `data.workers`.
            run: The model.
            data: Test images with labels.
        """
        found = segment(settings, run, run.model, data)
        if not found.confusion.any():
            raise UserError(
                f"{settings.segmentation.classes}: no pixel of the {len(data.images)} test images has a class"
            )
        metrics = segmentation_metrics(found.confusion)
        ious = zip(data.values.classes, class_ious(found.confusion).tolist(), strict=True)
        per_class = {name: value for name, value in ious if value == value}  # NaN: a class that is nowhere
        record = {"images": len(data.images), "classes": len(data.values.classes), "per_class": per_class}
        return Evaluation(metrics | {"mean": metrics["mIoU"]}, record, found)

    def write(
        self, settings: Settings, evaluation: Evaluation, data: SegmentationTest, folder: Path, split: str
    ) -> None:
        """labels_<split>/: a label image each, in the values of segmentation.classes (ADE20K's); segments_<split>.png: some
        of them in colours, beside the truth.

        Args:
            settings: `drawings.overlays`.
            evaluation: Of `evaluate`; its details are `Predictions`.
            data: The images that were evaluated.
            folder: Of the run.
            split: "test" or "val"; part of the files' names.
        """
        output, found = folder / f"labels_{split}", evaluation.details.images
        output.mkdir(exist_ok=True)
        pairs = data.images.pairs
        for name, content in zip(label_image_names([pair[0] for pair in pairs]), found, strict=True):
            with atomic_write(output / name) as file:
                file.write(content)
        count = min(settings.drawings.overlays, len(pairs))
        chosen = [len(pairs) * place // count for place in range(count)]
        if chosen:
            read = [data.images.read(pairs[number]) for number in chosen]
            guesses = [np.asarray(Image.open(io.BytesIO(found[number]))) for number in chosen]
            sheet = segmentation_sheet(
                [image for image, _ in read],
                [truth for _, truth in read],
                [data.values.decode(guess, "prediction") for guess in guesses],
                [Path(pairs[number][0]).stem for number in chosen],
                data.values.classes,
            )
            draw_segmentation(folder / f"segments_{split}.png", sheet)


def _values(settings: Settings) -> LabelValues:
    if settings.segmentation.classes is None:
        raise UserError(
            "segmentation.classes is not set: name the file of classes that data_prep/build_ade20k.py writes"
        )
    return read_label_values(settings.segmentation.classes)


def _transform(settings: Settings, size: int, normalization: Normalization) -> CropTransform:
    options = settings.segmentation
    scale, ratio = _two(options.scale, "scale"), _two(options.ratio, "ratio")
    try:
        return CropTransform(
            size, scale, ratio, options.largest_class, settings.data.hflip, options.distortion, normalization
        )
    except ValueError as error:
        raise UserError(f"segmentation: {error}") from None


def _whole(settings: Settings, normalization: Normalization) -> WholeTransform:
    try:
        return WholeTransform(_two(settings.segmentation.scale, "scale"), normalization)
    except ValueError as error:
        raise UserError(f"segmentation: {error}") from None


def _two(numbers: Sequence[Any], name: str) -> tuple[Any, Any]:
    if len(numbers) != 2:
        raise UserError(f"segmentation.{name} {list(numbers)}: want two numbers")
    return numbers[0], numbers[1]


@torch.inference_mode()
def segment(settings: Settings, run: RunModel, model: Any, data: SegmentationTest) -> Predictions:
    """Predict all images, in every process; each does a part of them and gets the whole.

    Args:
        settings: The section `segmentation`, and `data.workers`.
        run: Where it runs.
        model: Any module that gives `logits` of images [B, 3, H, W].
        data: Test images with labels.
    """
    world, options, test = run.world, settings.segmentation, data.images
    model, classes = model.eval(), len(data.values.classes)
    whole = options.mode == "whole"
    batches = test.batches(options.batch if whole else 1)
    part = batches[world.process :: world.size]
    confusion, found = np.zeros((classes, classes), np.int64), {}
    loader = make_loader(test, part, list, settings.data.workers)
    with Progress(sum(map(len, part)), "evaluate", 0, "image", world.is_main) as progress:
        for samples in loader:
            images = torch.stack([sample.image for sample in samples]).to(world.device)
            with run.autocast():
                windows = (
                    predict_whole(model, images)
                    if whole
                    else predict_windows(model, images, run.image_size, options.stride, options.batch)
                )
            seen, original = (images.shape[2], images.shape[3]), samples[0].labels.shape
            predicted = label_pixels(windows, seen, original, options.tile_mb).cpu().numpy()
            for sample, labels in zip(samples, predicted, strict=True):
                confusion += pixel_confusion(sample.labels, labels, classes, IGNORED)
                found[sample.index] = to_png(data.values.encode(labels))
            progress.update(len(samples))
    confusion = gather_rows(torch.from_numpy(confusion)[None].to(world.device)).sum(0).cpu().numpy()
    images_found: dict[int, bytes] = {}
    for some in gather_objects(found):
        images_found |= some
    return Predictions([images_found[number] for number in range(len(test))], confusion)
