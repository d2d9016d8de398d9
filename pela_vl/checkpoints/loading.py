"""A model loaded from a checkpoint, and what all families of models need to load one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.header import KINDS, Header
from pela_vl.checkpoints.ours import EMA, load_strict, read_header, read_weights
from pela_vl.lowrank import apply_plan

Model = TypeVar("Model", bound=nn.Module)
_ANEW = ": starts anew"


@dataclass
class LoadedModel(Generic[Model]):
    """A model and what its checkpoint held beside it.

    Args:
        model: The model.
        header: What its own checkpoint will say.
        ema: The EMA model's weights by the model's names; empty if the file has none.
        queues: Feature queues of a published file, by their published names; empty if it has none.
        notes: One line for each thing in the file that was not taken over.
    """

    model: Model
    header: Header
    ema: dict[str, Tensor] = field(default_factory=dict)
    queues: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def untrained(self) -> list[str]:
        """Parts that the file has no weights for, see `starts_anew`."""
        return [line.partition(_ANEW)[0] for line in self.notes if _ANEW in line]


def starts_anew(part: str, reason: str = "") -> str:
    """The note on a part of a model that a file has no weights for: training starts it, an evaluation of it means nothing.

    Args:
        part: Its name in the model.
        reason: What follows in the note.
    """
    return f"{part}{_ANEW}{reason}"


def build_model(header: Header, **options: Any) -> nn.Module:
    """A new model that fits a header: of its kind, with empty factors where the header has ranks.

    Args:
        header: Kind, config and ranks.
        options: Of the kind's builder.
    """
    model = KINDS[header.kind].build(header.config, **options)
    if header.ranks:
        apply_plan(model, header.ranks, init="empty")
    return model


def build_meta(header: Header, **options: Any) -> nn.Module:
    """`build_model` on the meta device: shapes without weights."""
    with torch.device("meta"):
        return build_model(header, **options)


def load_ours(path: str | os.PathLike[str], header: Header | None = None, **options: Any) -> LoadedModel:
    """The model of one of our checkpoints, as its header describes it.

    Args:
        path: The file.
        header: Its header, where it was read already.
        options: Of the kind's builder.

    Raises:
        UserError: If the file is not ours, is damaged, or its tensors do not fit.
    """
    header = header or read_header(path)
    if header is None:
        raise UserError(f"checkpoint {path}: not written by this project")
    weights, ema = split_ema(read_weights(path))
    try:
        model = build_model(header, **options)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from None
    load_strict(model, weights, str(path), KINDS[header.kind].optional)
    return LoadedModel(model, header, ema)


def split_ema(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's tensors as those of the model and those of its EMA model, both by the model's names."""
    ema = {name.removeprefix(EMA): value for name, value in state.items() if name.startswith(EMA)}
    return {name: value for name, value in state.items() if not name.startswith(EMA)}, ema


def dense_heads(model: nn.Module) -> list[str]:
    """The parts of a model that stay dense when it is compressed as published: its HEADS, those it has."""
    names = {name for name, _ in model.named_modules()}
    return [name for name in getattr(model, "HEADS", ()) if name in names]
