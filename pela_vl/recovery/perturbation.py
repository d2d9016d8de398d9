"""Regularised weight perturbation (RWP), PELA eq. 5-6. K layers, weights [out, in], rank r."""

import torch
from torch import Tensor

from pela_vl.lowrank import LowRankLinear


def largest_perturbations(layers: dict[str, LowRankLinear], originals: dict[str, Tensor]) -> Tensor:
    """|| up @ down - W ||_inf of every layer, [K].

    The gradient of a maximum reaches one element only. That element is found without a graph, and it alone is recomputed with
    one. So no dense difference is kept for backward.

    Raises:
        KeyError: If a layer has no original of its name.
    """
    picked = []
    for name, layer in layers.items():
        original, up, down = originals[name], layer.up.weight, layer.down.weight
        with torch.no_grad():
            # stays a tensor: reading the position on the host would stall a GPU for every layer
            where = torch.addmm(original, up, down, beta=-1.0).abs_().argmax().view(1)
        row, column = where // original.shape[1], where % original.shape[1]
        recovered = (up.index_select(0, row)[0] * down.index_select(1, column)[:, 0]).sum()
        picked.append((recovered - original.flatten()[where][0]).abs())
    return torch.stack(picked)


def weight_perturbation(
    layers: dict[str, LowRankLinear], originals: dict[str, Tensor], epsilon: float, form: str = "paper"
) -> Tensor:
    """Regularised weight perturbation: how far the largest change of a weight exceeds `epsilon`.

    Args:
        layers: The low-rank layers, by name.
        originals: The dense weights [out, in] that they replaced, by the same names.
        epsilon: What the largest change of a layer is compared with, in units of the weights.
        form: "paper": sum over the layers of (max |dW| - epsilon), eq. 6. "released": mean over the layers of its square.

    Raises:
        KeyError: If a layer has no original of its name.
    """
    excess = largest_perturbations(layers, originals) - epsilon
    return excess.square().mean() if form == "released" else excess.sum()
