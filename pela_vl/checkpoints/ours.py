"""Our checkpoints: one safetensors file with the weights and, in its header, all that is needed to build the model.

A run's resume state is a folder beside it: the weights, the momentum twin and queues, the optimiser, and the position.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_folder, atomic_write, recover_folder

FORMAT = "pela_vl/1"


@dataclass
class ModelCard:
    """What a checkpoint says of its model: `numbers` for `build_albef`, the low-rank plan and the vocabulary's name."""

    numbers: dict[str, Any]
    ranks: dict[str, int] = field(default_factory=dict)
    tokenizer: str = "bert-base-uncased"
    kind: str = "albef"
    notes: dict[str, Any] = field(default_factory=dict)


def save_model(
    path: str | os.PathLike[str],
    model: nn.Module | dict[str, Tensor],
    card: ModelCard,
    dtype: torch.dtype | None = None,
    extra: dict[str, Tensor] | None = None,
) -> None:
    """Write a model, or its weights by name, whole or not at all;
    `dtype` (such as float16) stores floating-point weights in fewer bytes.

    extra: more tensors to store, under names of their own, such as a momentum twin's.
    """
    weights = model.state_dict() if isinstance(model, nn.Module) else model
    state = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in (weights | (extra or {})).items()
    }
    with atomic_write(path) as stream:
        stream.write(save(state, metadata={"pela_vl": json.dumps({"format": FORMAT, "card": asdict(card)})}))


def read_card(path: str | os.PathLike[str]) -> ModelCard | None:
    """The card of one of our checkpoints; None if the file is not ours. Reads the header only.

    Raises UserError if there is no such file or it is damaged.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path}: no such file")
    if not str(path).endswith(".safetensors"):
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"checkpoint {path}: damaged or no safetensors file ({error})") from None
    # one entry: safetensors writes several in an order of its own, and equal checkpoints should be equal files
    header = json.loads(metadata.get("pela_vl", "{}"))
    return ModelCard(**header["card"]) if header.get("format") == FORMAT else None


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating point as fp32. Raises UserError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path}: cannot be read ({error})") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load_strict(model: nn.Module, state: dict[str, Tensor], source: str, may_miss: tuple[str, ...] = ()) -> None:
    """Load every tensor into the model; left-over, missing or wrongly shaped keys are an error that lists them.

    may_miss: names or prefixes (ending in a dot) that the state need not have and that keep their values.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not _covered(key, may_miss)]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [("missing", missing), ("left over", extra), ("of another shape", shapes)]
    text = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems if keys)
    if text:
        raise UserError(f"checkpoint {source} does not fit the model: {text}")
    model.load_state_dict(state, strict=not may_miss)


def _covered(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)


def _some(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


@dataclass
class Position:
    """Where a run stands: optimiser steps done, epoch, batches of it done, and the best evaluation so far."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None


def save_resume(
    folder: str | os.PathLike[str],
    module: nn.Module,
    companions: nn.Module,
    optimiser: dict[str, dict[str, Tensor]],
    position: Position,
) -> None:
    """Replace the run's resume state, whole or not at all."""
    flat = {f"{name}/{key}": value.contiguous() for name, entry in optimiser.items() for key, value in entry.items()}
    with atomic_folder(folder, replace=True) as target:
        save_file(_plain(module), target / "model.safetensors")
        save_file(_plain(companions), target / "companions.safetensors")
        save_file(flat, target / "optimiser.safetensors")
        (target / "state.json").write_text(json.dumps(asdict(position)), encoding="utf-8")


def load_resume(
    folder: str | os.PathLike[str], module: nn.Module, companions: nn.Module
) -> tuple[dict[str, dict[str, Tensor]], Position] | None:
    """Load what `save_resume` wrote into the modules and return the optimiser's state and the position; None if there
    is nothing to resume."""
    if not recover_folder(folder):
        return None
    folder = Path(folder)
    load_strict(module, read_weights(folder / "model.safetensors"), str(folder))
    load_strict(companions, read_weights(folder / "companions.safetensors"), str(folder))
    optimiser: dict[str, dict[str, Tensor]] = {}
    for key, value in read_weights(folder / "optimiser.safetensors").items():
        name, _, entry = key.rpartition("/")
        optimiser.setdefault(name, {})[entry] = value
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return optimiser, Position(**state)


def _plain(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
