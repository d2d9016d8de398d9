"""Regularised weight perturbation (RWP), PELA eq. 5-6, computed for all layers of one shape at once.

Shapes: K layers, G of them in a group; weights [O, I] (out, in), rank R.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pela_vl.lowrank import LowRankLinear

Routes = Mapping[int, Any]
"""By a parameter's id: an object with an `anchor` and a dictionary `further`, see `models.precision.GradientRoute`."""

_CPU_GROUP_BYTES, _GROUP_BYTES = 2**24, 2**28
"""Of the dense differences of one group: what a CPU's cache holds, and a few large products on a GPU."""


@dataclass(frozen=True)
class Largest:
    """Where each difference of a group is largest, and what stands there; without gradients.

    Args:
        row: int64 [G].
        column: int64 [G].
        up: Row `row` of every `up` [G, R].
        down: Column `column` of every `down` [G, R].
        original: The original weights' elements [G].
    """

    row: Tensor
    column: Tensor
    up: Tensor
    down: Tensor
    original: Tensor


class Perturbation:
    """|| up @ down - W ||_inf of every layer, [K], for a model's training.

    The gradient of a maximum reaches one element: that element is found without a graph (`search`) and only it is
    differentiated (`values`), so no dense difference is kept for backward. Layers of one shape are searched together.

    The originals of a group become parts of one tensor: each original tensor's memory is replaced by its part, so that they
    take no more memory than before.

    Args:
        layers: Low-rank layers by name.
        originals: The dense weights [O, I] by the same names.
        group_bytes: Of the dense differences that are held at a time; None: 16 MiB on a CPU, 256 MiB elsewhere.

    Raises:
        KeyError: If a layer has no original of its name.
    """

    def __init__(
        self, layers: Mapping[str, LowRankLinear], originals: Mapping[str, Tensor], group_bytes: int | None = None
    ):
        alike: dict[tuple[Any, ...], list[str]] = {}
        for name, layer in layers.items():
            weight = originals[name]
            alike.setdefault((weight.shape, layer.rank, weight.dtype, weight.device), []).append(name)
        self._groups: list[tuple[list[LowRankLinear], Tensor]] = []
        order: list[str] = []
        for names in alike.values():
            first = originals[names[0]]
            limit = group_bytes or (_CPU_GROUP_BYTES if first.device.type == "cpu" else _GROUP_BYTES)
            size = max(1, limit // (first.numel() * first.element_size()))
            for start in range(0, len(names), size):
                part = names[start : start + size]
                order += part
                stacked = torch.stack([originals[name].detach() for name in part])
                for place, name in enumerate(part):
                    originals[name].data = stacked[place]
                self._groups.append(([layers[name] for name in part], stacked))
        places = {name: place for place, name in enumerate(order)}
        device = self._groups[0][1].device if self._groups else None
        self._order = torch.tensor([places[name] for name in layers], dtype=torch.int64, device=device)

    @torch.no_grad()
    def search(self) -> list[Largest]:
        """Where the differences are largest, a group each; of the factors as they are now."""
        return [_search(layers, original) for layers, original in self._groups]

    def values(self, found: Sequence[Largest] | None = None, routes: Routes | None = None) -> Tensor:
        """The largest absolute difference of every layer, [K], in the layers' order.

        Args:
            found: Of a `search` since which the factors have not changed; None searches now.
            routes: By which the factors' gradients join those of a pass, by the factor's id; None leaves that to torch, which
                adds them one by one.
        """
        values = []
        for (layers, _), places in zip(self._groups, self.search() if found is None else found, strict=True):
            factors = [layer.up.weight for layer in layers] + [layer.down.weight for layer in layers]
            known = [(routes or {}).get(id(factor)) for factor in factors]
            if all(known):
                anchors = {id(route.anchor): route.anchor for route in known if route}
                values.append(_Picked.apply(places, factors, known, *anchors.values()))
            else:
                values.append(_Picked.apply(places, factors, None, *factors))
        return torch.cat(values).index_select(0, self._order)

    def penalty(
        self,
        epsilon: float,
        form: str = "paper",
        found: Sequence[Largest] | None = None,
        routes: Routes | None = None,
    ) -> Tensor:
        """RWP of the layers.

        Args:
            epsilon: What a weight may differ by.
            form: "paper": sum over the layers of (max |dW| - epsilon), eq. 6; "released": the mean of its square.
            found: See `values`.
            routes: See `values`.
        """
        excess = self.values(found, routes) - epsilon
        return excess.square().mean() if form == "released" else excess.sum()


def _search(layers: Sequence[LowRankLinear], original: Tensor) -> Largest:
    """original [G, O, I]"""
    up = torch.stack([layer.up.weight for layer in layers])
    down = torch.stack([layer.down.weight for layer in layers])
    # kept as tensors: reading the positions on the host would stall a GPU
    where = torch.baddbmm(original, up, down, beta=-1.0).abs_().flatten(1).argmax(1)
    row, column = where // original.shape[2], where % original.shape[2]
    group = torch.arange(len(layers), device=where.device)
    return Largest(row, column, up[group, row], down[group, :, column], original[group, row, column])


class _Picked(torch.autograd.Function):
    """|up[row] . down[:, column] - original| of a group, [G]; the factors come as G `up` and G `down` weights.

    What is differentiated are the factors, or the anchors of their routes.
    """

    @staticmethod
    def forward(ctx: Any, found: Largest, factors: list[Tensor], routes: list[Any] | None, *inputs: Tensor) -> Tensor:
        """The differences.

        Args:
            ctx: Of the backward pass.
            found: Where they are.
            factors: All `up` weights of the group, then all `down` weights.
            routes: Of the factors' gradients; None gives them to torch.
            inputs: The routes' anchors, or the factors themselves.
        """
        half = len(factors) // 2
        ctx.routes, ctx.ids, ctx.inputs = routes, [id(factor) for factor in factors], len(inputs)
        ctx.shapes = (half, *factors[0].shape), (half, *factors[half].shape)
        difference = (found.up * found.down).sum(1) - found.original
        ctx.save_for_backward(found.row, found.column, found.up, found.down, difference.sign())
        return difference.abs()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        row, column, up, down, sign = ctx.saved_tensors
        slope = (gradient * sign)[:, None]
        group = torch.arange(len(slope), device=slope.device)
        of_up, of_down = (slope.new_zeros(shape) for shape in ctx.shapes)
        of_up[group, row] = slope * down
        of_down[group, :, column] = slope * up
        gradients = *of_up.unbind(), *of_down.unbind()
        if ctx.routes is None:
            return None, None, None, *gradients
        for route, number, factor_gradient in zip(ctx.routes, ctx.ids, gradients, strict=True):
            route.further[number] = factor_gradient
        return None, None, None, *[None] * ctx.inputs
