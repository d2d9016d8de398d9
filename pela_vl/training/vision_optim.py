"""Parameter groups where a model itself says what is not decayed and how its learning rates fall with depth."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pela_vl.base.errors import UserError


def layered_parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    undecayed: Iterable[str],
    scales: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The trainable parameters in groups of equal decay and rate, in the form of `optim.parameter_groups`.

    Args:
        named_parameters: The model's, each once.
        lr: Of a parameter whose scale is 1.
        weight_decay: Of a parameter that is decayed.
        undecayed: Names of those that are not.
        scales: Factor on `lr` by name; 1 for a name left out.

    Returns:
        Groups with `params`, their `names` in the same order, `lr`, `lr_scale` and `weight_decay`.

    Raises:
        UserError: When nothing is trainable.
    """
    free = frozenset(undecayed)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        decay, scale = 0.0 if name in free else weight_decay, scales.get(name, 1.0)
        empty = {"params": [], "names": [], "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
        group = groups.setdefault((decay, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError("no parameter is trainable, so there is nothing to optimise; look at what the method freezes")
    return list(groups.values())
