"""Regularised weight perturbation (RWP), PELA eq. 5-6. K layers, weights [out, in], rank r."""

import torch
from torch import Tensor

from pela_vl.lowrank import LowRankLinear


def largest_perturbations(layers: dict[str, LowRankLinear], originals: dict[str, Tensor]) -> Tensor:
    """|| up @ down - W ||_inf of every layer, [K].

    The gradient of a maximum reaches one element: that element is found without a graph and only it is recomputed with
    one, so no dense difference is kept for backward. Raises KeyError if a layer has no original of its name.
    """
    picked = []
    for name, layer in layers.items():
        original, up, down = originals[name], layer.up.weight, layer.down.weight
        with torch.no_grad():
            # kept as a tensor: reading the position on the host would stall a GPU once a layer
            where = torch.addmm(original, up, down, beta=-1.0).abs_().argmax().view(1)
        row, column = where // original.shape[1], where % original.shape[1]
        recovered = (up.index_select(0, row)[0] * down.index_select(1, column)[:, 0]).sum()
        picked.append((recovered - original.flatten()[where][0]).abs())
    return torch.stack(picked)


def weight_perturbation(
    layers: dict[str, LowRankLinear], originals: dict[str, Tensor], epsilon: float, form: str = "paper"
) -> Tensor:
    """form "paper": sum over the layers of (max |dW| - epsilon), eq. 6; "released": the mean of its square."""
    excess = largest_perturbations(layers, originals) - epsilon
    return excess.square().mean() if form == "released" else excess.sum()
