"""Image classification (ImageNet): soft-target cross-entropy on mixed images, measured by top-1 and top-5 accuracy.

Shapes: B images, C classes, T images of a test.
"""

import os
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_json
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.checkpoints.vision_loading import KIND, load_classifier
from pela_vl.data.mixing import Mixing
from pela_vl.data.normalization import IMAGENET, Normalization
from pela_vl.data.repeated import repeated_order
from pela_vl.data.sets.labelled import (
    Labelled,
    LabelledBatch,
    LabelledCollate,
    LabelledEval,
    LabelledImages,
    load_labelled,
)
from pela_vl.data.vision_transforms import AugmentTransform, CentreTransform
from pela_vl.evaluation.classifying import Predictions, by_class, classify
from pela_vl.models.ema import EmaModel
from pela_vl.models.vision import VisionModel, VisionOutput
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher
from pela_vl.report.classes import draw_worst_classes
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
from pela_vl.workloads.calibration import draw_training
from pela_vl.workloads.image_calibration import ImageCalibration


class VisionPass:
    """One forward pass of an image classifier on a batch. It runs when `output` is first read.

    Args:
        model: The classifier.
        batch: images [B, 3, H, W].
        keep_hidden: Keep the outputs of the blocks.
    """

    def __init__(self, model: VisionModel, batch: Any, keep_hidden: bool = True):
        self.model, self.batch, self.keep_hidden = model, batch, keep_hidden

    @cached_property
    def output(self) -> VisionOutput:
        return self.model(self.batch.images, self.keep_hidden)

    def features(self, streams: Collection[str] | None = None) -> Features:
        """Hidden states by stream: "blocks", the blocks' outputs, and "pooled", what the classifier reads, [B, D].

        `streams` None gives "blocks" alone.
        """
        output, wanted = self.output, ("blocks",) if streams is None else streams
        found = {"blocks": output.hidden, "pooled": (output.pooled,)}
        places = {"blocks": output.kept} if output.kept is not None else {}
        inputs = {"blocks": output.embedded} if output.embedded is not None else {}
        return Features({name: found[name] for name in wanted}, places=places, inputs=inputs)


class ClassificationStep(TrainingStep[VisionModel]):
    """Cross-entropy to soft labels (term "ce"), and to the teacher's predictions where they are wanted (term "logits").

    Args:
        model: The classifier to train.
        ema: An EMA model of it, or None.
        momentum: Of the EMA model.
        keep_features: Return the hidden states that distillation pairs.
        streams: Names of these hidden states, see `VisionPass.features`.
        teacher: The frozen teacher; None where its predictions are not wanted.
        logits: Weight of the term "logits".
    """

    def __init__(
        self,
        model: VisionModel,
        ema: EmaModel | None,
        momentum: float,
        keep_features: bool,
        streams: tuple[str, ...] = ("blocks",),
        teacher: FrozenTeacher | None = None,
        logits: float = 0.0,
    ):
        super().__init__(model, ema, momentum, keep_features)
        self.streams, self.teacher, self.logits = streams, teacher, logits

    @torch.no_grad()
    def prepare(self, batch: LabelledBatch, alpha: float, first: bool) -> Tensor | None:
        """The teacher's logits [B, C] of the mixed images; None where they are not wanted.

        Args:
            batch: On the device; its images are mixed already.
            alpha: Not used: this task has no soft targets of an EMA model.
            first: Not used: the EMA model is updated after the optimiser.
        """
        return None if self.teacher is None else self.teacher.run(batch).output.logits

    def forward(self, batch: LabelledBatch, prepared: Tensor | None) -> StepOutput:
        states = VisionPass(self.model, batch, self.keep_features and "blocks" in self.streams)
        logits = states.output.logits
        terms = {"ce": soft_cross_entropy(logits, batch.labels)}
        if prepared is not None:
            terms["logits"] = self.logits * soft_cross_entropy(logits, prepared.float().softmax(1))
        hits = (logits.detach().argmax(1) == batch.targets).float().mean()
        features = states.features(self.streams) if self.keep_features else Features()
        return StepOutput(terms, features, {"accuracy": hits})

    def after_update(self) -> None:
        """The EMA model follows at once, as in timm, so that a run's last step is in it; ALBEF's follows a step later."""
        if self.ema is not None:
            self.ema.update(self.model, self.momentum)


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum(labels * log softmax(logits)) of logits, labels [B, C], mean over the batch."""
    return -(labels * F.log_softmax(logits.float(), dim=1)).sum(1).mean()


class Classification(Task[VisionModel]):
    """Image classification with the classes of the training data.

    In a mere evaluation, and before the training data is read, the classes are the checkpoint's.
    """

    title = "image classification"
    foreign_size = True
    kind = KIND
    ema_is_result = True
    evaluated_in_own_dtype = True

    def __init__(self) -> None:
        self.classes: tuple[str, ...] | None = None

    def check(self, settings: Settings) -> None:
        losses, vision = settings.losses, settings.vision
        for name in ("itc", "itm", "mlm"):
            if getattr(losses, name):
                raise UserError(f"losses.{name}: {self.title} has no such term; leave it out")
        if losses.fd_features == "pooled" and settings.method.name != "pela":
            raise UserError(f"losses.fd_features: pooled is for method pela, not for {settings.method.name}")
        if not 0 <= settings.train.ema < 1:
            raise UserError(f"train.ema {settings.train.ema}: want a momentum from 0 (no EMA model) to below 1")
        if vision.repeats < 1 or not 0 <= vision.erasing <= 1:
            raise UserError(f"vision.repeats {vision.repeats}, vision.erasing {vision.erasing}: want >= 1 and 0 to 1")
        check_augmentation(settings)
        self._mixing(settings, 1)
        _augmentation(settings, 224)
        _check_batch(settings)

    def load(self, settings: Settings, checkpoint: str | None) -> LoadedModel[VisionModel]:
        return load_classifier(settings.model, checkpoint, self.classes)

    def run(self, model: VisionModel, batch: Any, keep_hidden: bool = True) -> VisionPass:
        """A forward pass that runs when it is first read.

        Args:
            model: The student's or the teacher's classifier.
            batch: images [B, 3, H, W].
            keep_hidden: Keep the outputs of the blocks, which distillation needs.
        """
        return VisionPass(model, batch, keep_hidden)

    def make_teacher(self, model: VisionModel) -> FrozenTeacher[VisionModel]:
        """The frozen teacher. It sees every token, even where the student merges tokens."""
        if model.merging:
            model.set_token_merging(0)
        return super().make_teacher(model)

    def step(
        self, settings: Settings, model: VisionModel, keep_features: bool, teacher: FrozenTeacher | None
    ) -> ClassificationStep:
        """The training step, with an EMA model where train.ema is not 0.

        Args:
            settings: train.ema is the EMA model's momentum; losses.logits weighs the teacher's predictions.
            model: The classifier, in its final shape.
            keep_features: Whether the step returns the states of losses.fd_features.
            teacher: Gives its predictions where losses.logits is not 0; None for a method without a teacher.

        Raises:
            UserError: If losses.logits is not 0 and there is no teacher.
        """
        losses, momentum = settings.losses, settings.train.ema
        if losses.logits and teacher is None:
            raise UserError(f"losses.logits: method {settings.method.name} has no teacher; use method: pela, or 0")
        ema = EmaModel(model) if momentum else None
        source = teacher if losses.logits else None
        return ClassificationStep(model, ema, momentum, keep_features, (losses.fd_features,), source, losses.logits)

    def training_data(self, settings: Settings) -> LabelledImages:
        data, repeats = settings.data, settings.vision.repeats
        labelled = _read(settings, require_training_files(settings))
        self.classes = labelled.classes
        found = LabelledImages(labelled, None, settings.train.seed, data.cache_mb)
        if repeats > 1:
            found.order = repeated_order(len(found), repeats, found.order)
        return found

    def train_transform(self, settings: Settings, header: Header) -> AugmentTransform:
        return _augmentation(settings, header.config.image_size, header.normalization)

    def collate(self, settings: Settings, header: Header) -> LabelledCollate:
        return LabelledCollate(self._mixing(settings, header.config.classes), settings.train.seed)

    def calibration(
        self, settings: Settings, loaded: LoadedModel[VisionModel], data: Any, show: bool
    ) -> Callable[[nn.Module], None]:
        """Runs the classifier on `compress.samples` training images, with the transform of test images.

        Args:
            settings: `compress.samples` and `vision.resize`.
            loaded: The dense classifier; its header gives the image size.
            data: The training set; its transform is left as found.
            show: Show a progress bar.
        """
        transform = test_transform(settings, loaded.header)
        return ImageCalibration(data, draw_training(data, settings.compress.samples), transform, show)

    def tests(self, settings: Settings) -> dict[str, str]:
        """The test set, or the validation set if there is none: of ImageNet the one that the field reports."""
        return test_or_val(settings)

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> LabelledEval:
        """Images with the labels that the model's classes give them.

        Args:
            settings: data.image_root for lists, `vision.resize` for the transform.
            run: The classifier; its header names the classes and the image size.
            file: A list, a folder with one folder of images for each class, or a folder of shards.

        Raises:
            UserError: If the number of classes is not the model's, which happens where the model names none.
        """
        _check_batch(settings)
        names = run.header.notes.get("classes")
        labelled = _read(settings, [file], names)
        if len(labelled.classes) != run.header.config.classes:
            raise UserError(
                f"{file}: {len(labelled.classes)} classes, but the model has {run.header.config.classes}; a checkpoint that "
                "names no classes is evaluated on images of all of them"
            )
        return LabelledEval(labelled, test_transform(settings, run.header))

    def evaluate(self, settings: Settings, run: RunModel, data: LabelledEval) -> Evaluation:
        """Top-1 and top-5 accuracy in percent, "mean", the mean over the classes, and "similarity": the mean over the classes
        of the cosine between the features of a class's images (Figure 2); "similarity_all" is over all pairs of images. An EMA
        model's have the prefix "ema_".

        Args:
            settings: `vision.batch` and `data.workers`.
            run: The classifier, and its EMA model if there is one.
            data: Test images with labels.
        """
        found = self._classify(settings, run, run.model, data)
        metrics = found.metrics()
        if run.ema is not None:
            averaged = self._classify(settings, run, run.ema, data).metrics()
            metrics |= {f"ema_{name}": value for name, value in averaged.items()}
        record = {
            "images": len(data),
            "classes": len(data.classes),
            "per_class": by_class(data.classes, found.topk.per_class()),
            "class_similarity": by_class(data.classes, found.similarity),
        }
        return Evaluation(metrics, record, found)

    def _classify(self, settings: Settings, run: RunModel, model: VisionModel, data: LabelledEval) -> Predictions:
        return classify(model, data, run.world, run.autocast, settings.vision.batch, settings.data.workers)

    def write(self, settings: Settings, evaluation: Evaluation, data: LabelledEval, folder: Path, split: str) -> None:
        """Write predictions_<split>.json, one entry for each image, and classes_<split>.png, the classes recognised worst.

        Args:
            settings: Not used.
            evaluation: Of `evaluate`; its details are `Predictions`.
            data: The images that were evaluated.
            folder: Of the run.
            split: "test" or "val"; part of the files' names.
        """
        rows = [
            {"image": image, "label": data.classes[target], "predicted": data.classes[found]}
            for image, target, found in zip(data.images, data.targets, evaluation.details.predicted, strict=True)
        ]
        atomic_json(folder / f"predictions_{split}.json", rows)
        title = f"{split}: top-1 {evaluation.metrics['top1']:.1f} % of {len(data):,} images"
        draw_worst_classes(evaluation.details.confusion, data.classes, title, folder / f"classes_{split}.png")

    def _mixing(self, settings: Settings, classes: int) -> Mixing:
        vision = settings.vision
        try:
            return Mixing(classes, vision.mixup, vision.cutmix, vision.mix_probability, vision.switch, vision.smoothing)
        except ValueError as error:
            raise UserError(f"vision: {error}") from None


def _read(settings: Settings, sources: list[str], classes: Sequence[str] | None = None) -> Labelled:
    """Images and labels; data.image_root is for lists alone, since folders say themselves where their images are."""
    root = "" if all(os.path.isdir(source) for source in sources) else settings.data.image_root
    return load_labelled(sources, root, classes)


def _augmentation(settings: Settings, size: int, normalization: Normalization = IMAGENET) -> AugmentTransform:
    """The transform of training images of a model that reads `size` pixels a side."""
    data, vision = settings.data, settings.vision
    policy = vision.rand_augment if data.augment else ""
    try:
        return AugmentTransform(size, data.min_scale, data.hflip, policy, vision.erasing, normalization)
    except ValueError as error:
        raise UserError(f"vision.{error}") from None


def _check_batch(settings: Settings) -> None:
    if settings.vision.batch < 1:
        raise UserError(f"vision.batch {settings.vision.batch}: want 1 image at least")


def test_transform(settings: Settings, header: Header) -> CentreTransform:
    """The transform of test images of a model with this header."""
    size, resize = header.config.image_size, settings.vision.resize
    try:
        return CentreTransform(size, round(size * 8 / 7) if resize is None else resize, header.normalization)
    except ValueError as error:
        raise UserError(f"vision.resize: {error}") from None
