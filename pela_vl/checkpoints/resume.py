"""A run's resume state: a folder with the trained step, the optimiser and the position."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from pela_vl.base.files import atomic_folder, recover_folder
from pela_vl.checkpoints.ours import load_strict, read_weights

OptimiserState = dict[str, dict[str, Tensor]]
"""Entries of the optimiser by parameter name."""


@dataclass
class Position:
    """Where a run stands: optimiser steps done, epoch, batches of it done, and the best evaluation so far."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None


def save_resume(folder: str | os.PathLike[str], step: nn.Module, optimiser: OptimiserState, position: Position) -> None:
    """Replace the run's resume state, whole or not at all.

    Args:
        folder: Where it lies.
        step: The run's training step: the trained model and all that is kept beside it, such as its EMA model.
        optimiser: The optimiser's state.
        position: Where the run stands.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in step.state_dict().items()}
    moments = {f"{name}/{key}": value.contiguous() for name, entry in optimiser.items() for key, value in entry.items()}
    with atomic_folder(folder, replace=True) as target:
        save_file(weights, target / "step.safetensors")
        save_file(moments, target / "optimiser.safetensors")
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
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return optimiser, Position(**state)
