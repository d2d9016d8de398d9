"""Parameter groups of the vision recipes: timm's set without weight decay, and rates that fall from the head downwards."""

from typing import Any

from timm.models import group_parameters

from pela_vl.base.errors import UserError
from pela_vl.models.vision import VisionModel

PREFIX = "backbone."


def undecayed(model: VisionModel) -> set[str]:
    """Names of the parameters that timm's recipes do not decay: biases, 1-d weights, and the backbone's own list, which is
    positions and class token of a ViT and the relative positions of Swin."""
    listed = {PREFIX + name for name in model.backbone.no_weight_decay()}
    return {n for n, p in model.named_parameters() if p.ndim <= 1 or n.endswith(".bias") or n in listed}


def layer_scales(model: VisionModel, layer_decay: float) -> dict[str, float]:
    """Factor on the learning rate of every parameter by name: `layer_decay` to the number of layers above its own.

    The layers are timm's: the embeddings, each block (in Swin with the downsample before it), and the final norm with the
    head, whose factor is 1. Raises UserError unless 0 < layer_decay <= 1.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"layer_decay {layer_decay}: want a factor above 0, 1 for equal rates")
    groups = group_parameters(model.backbone, model.backbone.group_matcher(coarse=False), reverse=True)
    last = max(groups.values())
    return {
        name: layer_decay ** (last - groups.get(name.removeprefix(PREFIX), last))
        for name, _ in model.named_parameters()
    }


def vision_parameter_groups(
    model: VisionModel, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """The trainable parameters in groups of equal decay and rate, in the form of `optim.parameter_groups`.

    A group holds `params`, their `names` in the same order, `lr`, `lr_scale` and `weight_decay`. Raises UserError when
    nothing is trainable.
    """
    free, scales = undecayed(model), layer_scales(model, layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay, scale = 0.0 if name in free else weight_decay, scales[name]
        empty = {"params": [], "names": [], "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
        group = groups.setdefault((decay, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError("no parameter is trainable, so there is nothing to optimise; look at what the method freezes")
    return list(groups.values())
