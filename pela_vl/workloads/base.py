"""What a training run asks of a task: its model, its training step, its data and its evaluation.

A new task is one file with a subclass of `Task` and one of `TrainingStep`; tests/workloads/test_smallest_task.py
has the smallest one.
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
from pela_vl.evaluation.inference import prepare_for_evaluation
from pela_vl.models.ema import EmaModel
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher, Pass
from pela_vl.settings import Settings

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class StepOutput:
    """What one forward pass of a training step gives.

    Args:
        terms: Named scalar losses, already weighted; the step's loss is their sum.
        features: Hidden states that distillation pairs; empty where nobody asked for them.
        metrics: Named scalars to log, never part of the loss.
        watched: Named scalars that stop the run where they are not finite, as a loss does.
    """

    terms: dict[str, Tensor]
    features: Features = field(default_factory=Features)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    watched: dict[str, Tensor] = field(default_factory=dict)


class TrainingStep(nn.Module, Generic[Model]):
    """One task's training step: the trained model, what is kept beside it, and what is computed of a batch.

    A back end wraps the whole module. Its state dict is the run's resume state. Only the parameters of `model` are optimised. The
    forward pass has no side effects: what changes the EMA model or a queue is in `prepare`,
    `after_backward` and `after_update`.

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
        """The EMA model's own module that soft targets are read from. Raises ValueError for a step without one."""
        if self.ema is None:
            raise ValueError("this training step has no EMA model")
        return self.ema.for_targets

    @torch.no_grad()
    def prepare(self, batch: Any, alpha: float, first: bool) -> Any:
        """What the forward pass needs beside the batch, computed without gradients. An override calls this first.

        Args:
            batch: Of the task's `collate`, on the device.
            alpha: Weight of the soft targets, 0 to 1.
            first: Whether this is the first micro-batch of an optimiser step, when the EMA model is updated.

        Returns:
            What `forward` takes as `prepared`; None here.
        """
        if first and self.ema is not None:
            self.ema.update(self.model, self.momentum)

    def forward(self, batch: Any, prepared: Any) -> StepOutput:
        raise NotImplementedError

    def start_from(self, loaded: LoadedModel) -> None:
        """Take what else a checkpoint brings for the step, such as feature queues."""

    def after_backward(self, batch: Any, prepared: Any) -> None:
        """Keep what later steps need of a batch, such as its features in a queue."""

    def after_update(self) -> None:
        """Follow the weights that the optimiser has just changed; called once an optimiser step."""


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
        metrics: Numbers to log. The weights with the highest "mean" are kept as the best ones.
        record: Further entries of evaluation.json.
        details: What `Task.write` turns into files, such as predictions.
        logged: Further entries of the training log, which may be more than numbers.
    """

    metrics: dict[str, float]
    record: dict[str, Any] = field(default_factory=dict)
    details: Any = None
    logged: dict[str, Any] = field(default_factory=dict)


class Task(Generic[Model]):
    """One task. The defaults are those of a task with one kind of model and no evaluation.

    Data sets and collate functions follow the rule of data/: every random draw is a function of (seed, epoch, index). Every method
    may raise UserError. `check` and the reading of data come before anything is written.

    Class attributes:
        title: Name of the task in messages, a few words.
        foreign_size: Whether model.size says what a foreign checkpoint is, which its tensors do not.
        kind: Of the task's checkpoints (see `checkpoints.header.register_kind`).
        ema_is_result: Whether the EMA model is evaluated and saved beside the model; if not, it only gives soft targets.
        evaluated_in_own_dtype: Whether an evaluation in bf16 gives the model bf16 weights and runs without autocast. The model
            must take fp32 images then, and the task's metrics must be as good as under autocast.
    """

    title: ClassVar[str]
    foreign_size: ClassVar[bool] = False
    kind: ClassVar[str]
    ema_is_result: ClassVar[bool] = False
    evaluated_in_own_dtype: ClassVar[bool] = False

    def check(self, settings: Settings) -> None:
        """Refuse settings that do not make sense for this task."""

    def load(self, settings: Settings, checkpoint: str | None) -> LoadedModel[Model]:
        """The task's model from a checkpoint that it can start from, or a random one for None."""
        if checkpoint is None:
            raise UserError(f"init.checkpoint is not set: {self.title} starts from a checkpoint")
        return load_ours(checkpoint)

    def run(self, model: Model, batch: Any, keep_hidden: bool = True) -> Pass:
        """The forward pass that student and teacher make alike. It says which hidden states distillation pairs.

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
            settings: Of the run; its losses say what the step computes.
            model: The model to train, in its final shape.
            keep_features: Whether the step's output brings the hidden states that distillation pairs.
            teacher: The method's frozen teacher, which may give soft targets; None for a method without one.

        Raises:
            UserError: If the settings want a teacher that the method does not have.
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
            settings: `compress.samples`, and how to make batches.
            loaded: The dense model.
            data: The training set; its transform is left as found.
            show: Show a progress bar.

        Raises:
            UserError: For a task without calibration.
        """
        raise UserError(f"compress.init: {self.title} has no calibration; use compress.init: svd")

    def tests(self, settings: Settings) -> dict[str, str]:
        """Files that the final weights are evaluated on, by the split's name, in order."""
        return {}

    def evaluation_data(self, settings: Settings, run: RunModel, file: str) -> Any:
        """Read what `evaluate` works on.

        Args:
            settings: How to read: `data`, and the task's own section.
            run: The model that is to be evaluated; image size, normalisation and tokeniser are its header's.
            file: Path of an annotation file, from data.val or data.test.

        Returns:
            The data set.

        Raises:
            UserError: Naming file, entry and field of what is wrong.
        """
        raise NotImplementedError

    def optimise(self, model: Model, dtype: torch.dtype | None) -> tuple[Model, Callable[[], Any]]:
        """Make a model that is only evaluated from now on quicker, in place, with the same results.

        Args:
            model: In eval mode, on its device.
            dtype: What the evaluation computes in; None for fp32.

        Returns:
            The model, and a callable giving the context that its forward passes run in. See `prepare_for_evaluation`.
        """
        return prepare_for_evaluation(model, dtype, autocast=not self.evaluated_in_own_dtype)

    def evaluate(self, settings: Settings, run: RunModel, data: Any) -> Evaluation:
        """Evaluate a model. Every process calls it with the same data, does a part of it, and gets the whole result.

        Args:
            settings: How to evaluate: `evaluate`, and the task's own section.
            run: The model, its EMA model where that is evaluated too, and the processes.
            data: Of `evaluation_data`.
        """
        raise NotImplementedError

    def write(self, settings: Settings, evaluation: Evaluation, data: Any, folder: Path, split: str) -> None:
        """Write predictions and drawings of a final evaluation. Only the main process calls it.

        Args:
            settings: `drawings` says how many examples are drawn.
            evaluation: Of `evaluate`.
            data: What was evaluated on.
            folder: Of the run; it exists.
            split: Name of the test file, a key of `tests`; part of the files' names.
        """


def require_training_files(settings: Settings) -> list[str]:
    """data.train, which must name something."""
    if not settings.data.train:
        raise UserError("data.train names no file; give at least one annotation list")
    return settings.data.train


def check_augmentation(settings: Settings) -> None:
    """Refuse a probability of a flip, or a share of the area that a crop covers, which is none."""
    hflip, min_scale = settings.data.hflip, settings.data.min_scale
    if not 0 <= hflip <= 1:
        raise UserError(f"data.hflip {hflip}: want a probability, from 0 to 1")
    if not 0 < min_scale <= 1:
        raise UserError(f"data.min_scale {min_scale}: want a part of the area, above 0 and up to 1, which is no crop")


def test_or_val(settings: Settings) -> dict[str, str]:
    """The test file, or the validation file if there is none. The usual `tests`."""
    if settings.data.test:
        return {"test": settings.data.test}
    return {"val": settings.data.val} if settings.data.val else {}


def val_and_test(settings: Settings) -> dict[str, str]:
    """Both files, as far as they are named."""
    files = {"val": settings.data.val, "test": settings.data.test}
    return {split: file for split, file in files.items() if file}
