"""Aligning the factors of two models, so that a running average of factors is meaningful.

Factors are unique only up to an invertible matrix between them: (up R^-1)(R down) is the same product for every R.
Shapes: W [out, in], up [out, r], down [r, in].
"""

import torch
from torch import Tensor, nn

from pela_vl.lowrank.apply import low_rank_layers


def aligned(up: Tensor, down: Tensor, other_up: Tensor, other_down: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate a pair of factors towards another pair: (up R, R^T down), R orthogonal.

    The product stays the same. R solves the orthogonal Procrustes problem min ||up R - other_up||^2 +
    ||R^T down - other_down||^2 (Schoenemann, 1966): R = U V^T with U S V^T = up^T other_up + down other_down^T.

    Args:
        up: [out, r], rotated on its right.
        down: [r, in], rotated on its left.
        other_up: [out, r], the target of `up`.
        other_down: [r, in], the target of `down`.

    Returns:
        The rotated factors, in the dtypes of `up` and `down`. The work is done in fp64.
    """
    correlation = up.double().T @ other_up.double() + down.double() @ other_down.double().T
    left, _, right = torch.linalg.svd(correlation)
    rotation = left @ right
    return (up.double() @ rotation).to(up.dtype), (rotation.T @ down.double()).to(down.dtype)


@torch.no_grad()
def align_factors(model: nn.Module, reference: nn.Module) -> None:
    """Align every low-rank layer of `model` with the layer of the same name in `reference`, in place.

    Two nearly equal matrices can have very different factors, because singular vectors rotate freely where singular
    values are close. An average over such factors does not approximate either matrix. Layers on the meta device are
    skipped.

    Raises:
        KeyError: If `reference` lacks a low-rank layer of `model`.
    """
    partners = low_rank_layers(reference)
    for name, layer in low_rank_layers(model).items():
        up, down, partner = layer.up.weight, layer.down.weight, partners[name]
        if up.device.type == "meta":
            continue
        new_up, new_down = aligned(up, down, partner.up.weight, partner.down.weight)
        up.copy_(new_up)
        down.copy_(new_down)
