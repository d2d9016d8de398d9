"""Turning the factors of one model into the basis of another's, so that averages of factors are factors of averages.

Shapes: W [out, in], up [out, r], down [r, in].
"""

import torch
from torch import Tensor, nn

from pela_vl.lowrank.apply import low_rank_layers


def aligned(up: Tensor, down: Tensor, other_up: Tensor, other_down: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (up R, R^T down) that are nearest to others of the same shape, over all orthogonal R.

    The product stays the same. R solves the orthogonal Procrustes problem min ||up R - other_up||^2 +
    ||R^T down - other_down||^2 (Schoenemann, 1966): R = U V^T with U S V^T = up^T other_up + down other_down^T.
    """
    correlation = up.double().T @ other_up.double() + down.double() @ other_down.double().T
    left, _, right = torch.linalg.svd(correlation)
    rotation = left @ right
    return (up.double() @ rotation).to(up.dtype), (rotation.T @ down.double()).to(down.dtype)


@torch.no_grad()
def align_factors(model: nn.Module, reference: nn.Module) -> None:
    """Align every low-rank layer of a model with the layer of the same name of another, in place.

    Two matrices that are nearly equal can have factors in quite different bases: singular vectors rotate where singular
    values are close. A running average of factors in two bases is the average of nothing. Layers without weights (on the meta
    device) stay as they are.

    Raises:
        KeyError: If a layer has no partner.
    """
    partners = low_rank_layers(reference)
    for name, layer in low_rank_layers(model).items():
        up, down, partner = layer.up.weight, layer.down.weight, partners[name]
        if up.device.type == "meta":
            continue
        new_up, new_down = aligned(up, down, partner.up.weight, partner.down.weight)
        up.copy_(new_up)
        down.copy_(new_down)
