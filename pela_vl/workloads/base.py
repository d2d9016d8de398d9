"""What the runner asks of a task."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.utils.data import Dataset

from pela_vl.base.distributed import Ranks
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import LoadedModel
from pela_vl.data.tokenizer import Tokenizer
from pela_vl.objectives.base import Objective
from pela_vl.settings import Settings


@dataclass
class ModelSide:
    """What an evaluation needs of the model's side. autocast: gives the context that forwards run in."""

    model: Any
    tokenizer: Tokenizer
    autocast: Callable[[], Any]
    ranks: Ranks

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.model.visual_encoder.patch_embed.img_size[0]


@dataclass
class Evaluation:
    """The outcome of one evaluation, the same on every rank.

    metrics: numbers to log; the best weights are those of the highest "mean". record: what goes beside them into
    evaluation.json. details: whatever `write` makes files of. logged: more than numbers for the training's log.
    """

    metrics: dict[str, float]
    record: dict[str, Any] = field(default_factory=dict)
    details: Any = None
    logged: dict[str, Any] = field(default_factory=dict)


class Workload(Protocol):
    """One task. Data sets and collate functions follow the rule of data/: every draw is a function of (seed, epoch, index).

    title: a few words. Every method may raise UserError; `check` and the reading of data come before anything is written.
    """

    title: str

    def check(self, settings: Settings) -> None:
        """Refuse settings that do not make sense for this task."""

    def load(self, settings: Settings, checkpoint: str | None, vocab_size: int | None) -> LoadedModel:
        """The task's model from a checkpoint of any kind that it can start from, or random."""

    def objective(self, settings: Settings, model: nn.Module, keep_hidden: bool) -> Objective:
        """The training step. keep_hidden: its output brings the hidden states that distillation reads."""

    def training_data(self, settings: Settings) -> Dataset:
        """The training set, its `transform` still None: the image size is known only when the model is built."""

    def collate(self, settings: Settings, tokenizer: Tokenizer) -> Callable[[list[Any]], Any]:
        """Samples to a batch; a batch has len, `to(device)`, `indices`, `replaced` and `bad` (see data/collate.py)."""

    def tests(self, settings: Settings) -> dict[str, str]:
        """Annotation files that the final weights are evaluated on, by the split's name, in order."""

    def evaluation_data(self, settings: Settings, side: ModelSide, file: str) -> Any:
        """Read what `evaluate` works on."""

    def evaluate(self, settings: Settings, side: ModelSide, data: Any) -> Evaluation:
        """Evaluate; every rank calls it with the same data, does its share and gets the whole."""

    def write(self, settings: Settings, evaluation: Evaluation, data: Any, folder: Path, split: str) -> None:
        """Predictions and pictures of a final evaluation; called on the main rank alone."""


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
