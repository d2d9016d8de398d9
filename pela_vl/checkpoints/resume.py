"""A run's resume state: a folder with the trained step, the optimiser and the position."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_folder, recover_folder
from pela_vl.checkpoints.ours import load_strict, read_weights
from pela_vl.checkpoints.tensor_files import write_tensors

OptimiserState = dict[str, dict[str, Tensor]]
"""Entries of the optimiser by parameter name."""


@dataclass
class Position:
    """Where a run stands.

    Args:
        step: Optimiser steps done.
        epoch: The epoch that comes or is under way.
        batch: Batches of the epoch done.
        best: The best evaluation so far.
        global_batch: Samples of a batch of all processes.
        accumulation: Batches of an optimiser step.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    global_batch: int | None = None
    accumulation: int = 1

    @property
    def step_samples(self) -> int | None:
        """Samples of an optimiser step; None where the batch is not known."""
        return None if self.global_batch is None else self.global_batch * self.accumulation

    def cut_anew(self, global_batch: int, accumulation: int, batches_per_epoch: int) -> "Position":
        """The same place in the data for another cut of an optimiser step into processes, batches and accumulation.

        Args:
            global_batch: Of the new run.
            accumulation: Of the new run.
            batches_per_epoch: Of the new run.

        Raises:
            UserError: If an optimiser step would have another number of samples, or the place is no end of a batch.
        """
        if self.global_batch is None:
            return replace(self, global_batch=global_batch, accumulation=accumulation)
        before, now = self.step_samples, global_batch * accumulation
        if before != now:
            if before % global_batch == 0:
                mend = f"train.accumulation={before // global_batch}"
            else:
                mend = "train.batch_size and train.accumulation"
            raise UserError(
                f"--resume: the run stopped with {before} samples an optimiser step, and would go on with {now}, at another "
                f"place of its schedule; set {mend} so that processes x batch_size x accumulation are {before} again"
            )
        samples = self.batch * self.global_batch
        if samples % global_batch:
            raise UserError(
                f"--resume: the run stopped after {samples} samples of epoch {self.epoch}, which is no whole number of "
                f"batches of {global_batch}; go on with batches of {self.global_batch} over all processes"
            )
        batch = samples // global_batch
        if batch > batches_per_epoch:
            raise UserError(
                f"--resume: the run stopped after {samples} samples of epoch {self.epoch}, but the training set has only "
                f"{batches_per_epoch * global_batch}; give it the data that it was started with"
            )
        return replace(self, batch=batch, global_batch=global_batch, accumulation=accumulation)


def save_resume(folder: str | os.PathLike[str], step: nn.Module, optimiser: OptimiserState, position: Position) -> None:
    """Replace the run's resume state, whole or not at all.

    Args:
        folder: Where it lies.
        step: The run's training step: the trained model and all that is kept beside it, such as its EMA model.
        optimiser: The optimiser's state.
        position: Where the run stands.
    """
    moments = {f"{name}/{key}": value for name, entry in optimiser.items() for key, value in entry.items()}
    with atomic_folder(folder, replace=True) as target:
        write_tensors(target / "step.safetensors", step.state_dict())
        write_tensors(target / "optimiser.safetensors", moments)
        (target / "state.json").write_text(json.dumps(asdict(position)), encoding="utf-8")


def load_resume(folder: str | os.PathLike[str], step: nn.Module) -> tuple[OptimiserState, Position] | None:
    """Load what `save_resume` wrote into the training step; None if there is nothing to resume.

    Returns:
        The optimiser's state and the position.
    """
    if not recover_folder(folder):
        return None
    folder = Path(folder)
    load_strict(step, read_weights(folder / "step.safetensors"), str(folder))
    optimiser: OptimiserState = {}
    for key, value in read_weights(folder / "optimiser.safetensors").items():
        name, _, entry = key.rpartition("/")
        optimiser.setdefault(name, {})[entry] = value
    try:
        position = Position(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: state.json is damaged ({error}); start the run anew in another output") from None
    return optimiser, position
