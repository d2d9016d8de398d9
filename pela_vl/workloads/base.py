"""What a training run asks of a task: its model, its training step, its data and its evaluation.

A new task is one file with a subclass of `Task` and one of `TrainingStep`; docs/contributing.md shows the smallest one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pela_vl.base.distributed import World
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.header import Header
from pela_vl.checkpoints.loading import LoadedModel, load_ours
from pela_vl.data.transforms import Transform
from pela_vl.models.ema import EmaModel
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher, Pass
from pela_vl.settings import Settings

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class StepOutput:
    """One forward pass of a training step.

    Args:
        terms: Named scalar losses, already weighted; the step's loss is their sum.
        features: Hidden states that distillation pairs; empty where nobody asked for them.
        metrics: Named scalars to log, never part of the loss.
    """

    terms: dict[str, Tensor]
    features: Features = field(default_factory=Features)
    metrics: dict[str, Tensor] = field(default_factory=dict)


class TrainingStep(nn.Module, Generic[Model]):
    """One task's training step: the trained model, what is kept beside it, and what is computed of a batch.

    A back end wraps the whole module. Its state dict is the run's resume state; the parameters of `model` alone are
    optimised. The forward pass has no side effects: what changes the EMA model or a queue is in `prepare` and
    `after_backward`.

    Args:
        model: The model to train.
        ema: An EMA model of it, or None.
        momentum: Of the EMA model.
        keep_features: Return the hidden states that distillation pairs.
    """

    def __init__(
        self, model: Model, ema: EmaModel[Model] | None = None, momentum: float = 0.995, keep_features: bool = False
    ):
        super().__init__()
        self.model: Model = model
        self.ema = ema
        self.momentum = momentum
        self.keep_features = keep_features

    @property
    def ema_model(self) -> Model:
        """The EMA model's own module. Raises ValueError for a step without one."""
        if self.ema is None:
            raise ValueError("this training step has no EMA model")
        return self.ema.model

    @torch.no_grad()
    def prepare(self, batch: Any, alpha: float, first: bool) -> Any:
        """What the forward pass needs beside the batch, without gradients; a subclass that overrides it calls this first.

        Args:
            batch: Of the task's `collate`.
            alpha: Weight of the soft targets.
            first: Whether this is the first micro-batch of an optimiser step, when the EMA model is updated.
        """
        if first and self.ema is not None:
            self.ema.update(self.model, self.momentum)

    def forward(self, batch: Any, prepared: Any) -> StepOutput:
        raise NotImplementedError

    def start_from(self, loaded: LoadedModel) -> None:
        """Take what else a checkpoint brings for the step, such as feature queues."""

    def after_backward(self, batch: Any, prepared: Any) -> None:
        """Keep what later steps need of a batch, such as its features in a queue."""


@dataclass
class RunModel:
    """A model in use by a run, with all that its evaluation needs to know of it.

    Args:
        model: The model.
        header: What its checkpoint says of it.
        autocast: Gives the context that forward passes run in.
        world: This process and the others.
        ema: An EMA model that is evaluated beside it, if there is one.
    """

    model: Any
    header: Header
    autocast: Callable[[], Any]
    world: World
    ema: Any = None

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.header.config.image_size


@dataclass
class Evaluation:
    """The outcome of one evaluation, the same in every process.

    Args:
        metrics: Numbers to log; the best weights are those of the highest "mean".
        record: What goes beside them into evaluation.json.
        details: Whatever `Task.write` makes files of.
        logged: More than numbers for the training's log.
    """

    metrics: dict[str, float]
    record: dict[str, Any] = field(default_factory=dict)
    details: Any = None
    logged: dict[str, Any] = field(default_factory=dict)


class Task(Generic[Model]):
    """One task. The defaults are those of a task with one kind of model and no evaluation.

    Data sets and collate functions follow the rule of data/: every draw is a function of (seed, epoch, index). Every
    method may raise UserError; `check` and the reading of data come before anything is written.

    Class attributes:
        title: A few words.
        kind: Of the task's checkpoints (see `checkpoints.header.register_kind`).
        ema_is_result: The EMA model is evaluated and saved beside the model; otherwise it only serves the losses.
    """

    title: ClassVar[str]
    kind: ClassVar[str]
    ema_is_result: ClassVar[bool] = False

    def check(self, settings: Settings) -> None:
        """Refuse settings that do not make sense for this task."""

    def load(self, settings: Settings, checkpoint: str | None) -> LoadedModel[Model]:
        """The task's model from a checkpoint that it can start from, or a random one for None."""
        if checkpoint is None:
            raise UserError(f"init.checkpoint is not set: {self.title} starts from a checkpoint")
        return load_ours(checkpoint)

    def run(self, model: Model, batch: Any, keep_hidden: bool = True) -> Pass:
        """The forward pass that student and teacher make alike; it says which hidden states distillation pairs.

        Args:
            model: The student's or the teacher's model.
            batch: Of `collate`.
            keep_hidden: Keep the hidden states.
        """
        raise NotImplementedError

    def make_teacher(self, model: Model) -> FrozenTeacher[Model]:
        """The frozen teacher that a dense model becomes."""
        return FrozenTeacher(model, self.run)

    def step(
        self, settings: Settings, model: Model, keep_features: bool, teacher: FrozenTeacher[Model] | None
    ) -> TrainingStep[Model]:
        """The training step.

        Args:
            settings: The run's.
            model: The model to train, in its final shape.
            keep_features: Its output brings the hidden states that distillation pairs.
            teacher: The method's frozen teacher, which may give soft targets.
        """
        raise NotImplementedError

    def training_data(self, settings: Settings) -> Dataset:
        """The training set, its `transform` still None: the image size is known only when the model is there."""
        raise NotImplementedError

    def train_transform(self, settings: Settings, header: Header) -> Transform:
        """The transform of training images for a model."""
        raise NotImplementedError

    def collate(self, settings: Settings, header: Header) -> Callable[[list[Any]], Any]:
        """Samples to a batch; a batch has len, `to(device)`, `indices`, `replaced` and `bad` (see data/collate.py)."""
        raise NotImplementedError

    def calibration(
        self, settings: Settings, loaded: LoadedModel[Model], data: Dataset, show: bool
    ) -> Callable[[nn.Module], None]:
        """Runs the model on `compress.samples` training samples, for factors that are made for real inputs.

        Args:
            settings: The run's.
            loaded: The dense model.
            data: The training set; its transform is left as found.
            show: Show progress.
        """
        raise UserError(f"compress.init: {self.title} has no calibration; use compress.init: svd")

    def tests(self, settings: Settings) -> dict[str, str]:
        """Files that the final weights are evaluated on, by the split's name, in order."""
        return {}

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> Any:
        """Read what `evaluate` works on."""
        raise NotImplementedError

    def evaluate(self, settings: Settings, run: RunModel, data: Any) -> Evaluation:
        """Evaluate; every process calls it with the same data, does its part and gets the whole."""
        raise NotImplementedError

    def write(self, settings: Settings, evaluation: Evaluation, data: Any, folder: Path, split: str) -> None:
        """Write predictions and drawings of a final evaluation; called in the main process alone."""


def require_training_files(settings: Settings) -> list[str]:
    """data.train, which must name something."""
    if not settings.data.train:
        raise UserError("data.train names no file; give at least one annotation list")
    return settings.data.train


def test_or_val(settings: Settings) -> dict[str, str]:
    """The test file, or the validation file if there is none. The usual `tests`."""
    if settings.data.test:
        return {"test": settings.data.test}
    return {"val": settings.data.val} if settings.data.val else {}


def val_and_test(settings: Settings) -> dict[str, str]:
    """Both files, as far as they are named."""
    files = {"val": settings.data.val, "test": settings.data.test}
    return {split: file for split, file in files.items() if file}
