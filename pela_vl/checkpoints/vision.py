"""Gives the tensors of a released ImageNet classifier this project's names. What is not taken over is listed with its reason."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import starts_anew
from pela_vl.checkpoints.reading import factor_ranks, listed, read_state, unwrap
from pela_vl.checkpoints.vision_tables import VISION_TABLES, downsample_at_the_start
from pela_vl.lowrank import PlanError, apply_plan
from pela_vl.models.vision import VisionConfig, VisionModel, build_vision

HEAD = "backbone.head."
"""What the classifier's parameters begin with."""


@dataclass(frozen=True)
class ConvertedVision:
    """A foreign image classifier under this project's names.

    Args:
        kind: vit or swin.
        weights: The model's tensors.
        ranks: Rank of every low-rank layer by name, read from the factors' shapes; empty for a dense model.
        classes: Number of classes of its classifier; None for a file without one.
        notes: One line for each tensor that was not taken over, with the reason.
    """

    kind: str
    weights: dict[str, Tensor]
    ranks: dict[str, int] = field(default_factory=dict)
    classes: int | None = None
    notes: list[str] = field(default_factory=list)


def recognise_vision(state: Mapping[str, Tensor]) -> str:
    """ "vit" or "swin", from the tensors' names. Raises UserError for neither."""
    names = {name.removeprefix("backbone.") for name in state}
    if "patch_embed.proj.weight" in names:
        if any(name.startswith("layers.0.blocks.0.attn.") for name in names):
            return "swin"
        if any(name.startswith("blocks.0.attn.") for name in names):
            return "vit"
    raise UserError(
        f"no checkpoint of a ViT (DeiT, DeiT-III) or Swin Transformer; its keys begin with {listed(sorted(state), 6)}"
    )


def convert_vision(source: str | os.PathLike[str] | Mapping[str, object]) -> ConvertedVision:
    """Read a .pth or .safetensors file or a hub folder (see `read_state`), or take a dict of tensors, and rename all.

    No tensor is copied or changed. Raises UserError when the kind is unknown, a key is neither mapped nor ignored by its
    kind's table (all are listed), two keys name one parameter, or factors do not fit together.
    """
    if isinstance(source, Mapping):
        where = "the given state"
        state, notes = unwrap(source, where)
    else:
        where = os.fspath(source)
        state, notes = read_state(source)
    try:
        kind = recognise_vision(state)
        weights, ignored = _rename(kind, state)
        ranks = factor_ranks(weights)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    head = weights.get("backbone.head.fc.weight" if kind == "swin" else "backbone.head.weight")
    return ConvertedVision(kind, weights, ranks, None if head is None else len(head), notes + ignored)


def load_vision(
    source: str | os.PathLike[str] | Mapping[str, object], config: VisionConfig
) -> tuple[VisionModel, list[str]]:
    """The model of `config` with all weights of the file, dense or low rank as the file is; and notes.

    Positions of another image size, and Swin's relative positions of another window, are resampled as timm does. The
    classifier starts anew, with a note, where the file has none or one of another number of classes; everything else must
    be there in the right shape. Raises UserError as `convert_vision` and `build_vision` do, and for what is missing.
    """
    where = "the given state" if isinstance(source, Mapping) else os.fspath(source)
    return fill_vision(convert_vision(source), config, where)


def fill_vision(converted: ConvertedVision, config: VisionConfig, where: str) -> tuple[VisionModel, list[str]]:
    """The model of `config` with converted weights, as `load_vision` does it.

    Args:
        converted: The file's tensors.
        config: What to build.
        where: The file's name, for messages.

    Returns:
        The model, and one line for each thing that was not taken over.

    Raises:
        UserError: If the weights do not fit the config.
    """
    notes = list(converted.notes)
    try:
        model = build_vision(config)
        apply_plan(model, converted.ranks, init="empty")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except PlanError as error:
        raise UserError(f"{where}: does not fit {config.backbone}: {error}") from None
    weights = resampled(converted.weights, model)
    if converted.classes != config.classes:
        weights = {name: value for name, value in weights.items() if not name.startswith(HEAD)}
        held = (
            "no classifier of these classes"
            if converted.classes is None
            else f"a classifier of {converted.classes} classes"
        )
        notes.append(starts_anew("head", f" (the file has {held}, the model {config.classes} classes)"))
        weights |= {k: v for k, v in model.state_dict().items() if k.startswith(HEAD)}
    load_strictly(model, weights, f"{where}: does not fit {config.backbone}")
    return model, notes


def _rename(kind: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    moved = downsample_at_the_start(list(state)) if kind == "swin" else {}
    weights: dict[str, Tensor] = {}
    left, twice, notes = [], [], []
    for key, value in state.items():
        name = moved.get(key, key)
        match = None
        for rule in VISION_TABLES[kind]:
            match = rule.pattern.fullmatch(name)
            if match:
                break
        if not match:
            left.append(key)
        elif rule.target is None:
            notes.append(f"{key}: ignored ({rule.reason})")
        else:
            target = rule.rename(match)
            if target in weights:
                twice.append(key)
            weights[target] = value
    if left:
        raise UserError(f"{len(left)} keys of this {kind} checkpoint are unknown: {listed(left)}")
    if twice:
        raise UserError(f"keys that name one parameter twice: {listed(twice)}")
    return weights, notes


def resampled(weights: dict[str, Tensor], model: VisionModel) -> dict[str, Tensor]:
    """weights with positions resampled, antialiased, to the model's grid or windows; all else as it is."""
    found = dict(weights)
    net: Any = model.backbone  # timm's
    if not model.is_swin:
        name, wanted = "backbone.pos_embed", net.pos_embed
        given = found.get(name)
        if given is not None and wanted is not None and given.ndim == 3 and given.shape[1] != wanted.shape[1]:
            prefix = 0 if net.no_embed_class else net.num_prefix_tokens
            grid = (int((given.shape[1] - prefix) ** 0.5),) * 2
            if grid[0] ** 2 != given.shape[1] - prefix:
                raise UserError(f"{name}: {list(given.shape)} are not {prefix} prefix tokens and a square of positions")
            found[name] = resample_abs_pos_embed(given, net.patch_embed.grid_size, grid, num_prefix_tokens=prefix)
        return found
    for name, value in weights.items():
        if name.endswith("relative_position_bias_table"):
            attention: Any = _module(model, name)  # timm's WindowAttention
            wanted = attention.relative_position_bias_table.shape if attention is not None else value.shape
            if value.ndim == 2 and value.shape != wanted and value.shape[1] == wanted[1]:
                found[name] = resize_rel_pos_bias_table(value, attention.window_size, wanted)
    return found


def _module(model: nn.Module, parameter: str) -> nn.Module | None:
    try:
        return model.get_submodule(parameter.rpartition(".")[0])
    except AttributeError:
        return None


@torch.no_grad()
def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Fill a model with weights that are all of it.

    Args:
        model: The model.
        weights: Name -> tensor.
        where: What a message begins with.

    Raises:
        UserError: For missing and unknown tensors and those of another shape, which it lists.
    """
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = [
        f"{name} {list(weights[name].shape)} (wanted {list(value.shape)})"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            raise UserError(f"{where}: {len(names)} tensors {what}: {listed(names)}")
    model.load_state_dict(dict(weights))
