"""Layers that read one input as one product: their weights, or their two factors, stacked.

Shapes: K layers, N rows, I input width, O output width, R rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Place = tuple[nn.Module, str]
"""A module, and the name of one of its parameters."""


@dataclass(frozen=True)
class StackedLayers:
    """The weights of K layers of one shape.

    Args:
        weight: Dense weights [K, O, I], or the factors `down` [K, R, I].
        up: The factors [K, O, R]; None for dense layers.
        bias: [K, O], or None.
    """

    weight: Tensor
    up: Tensor | None = None
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., I] -> the K layers' outputs, each [..., O]."""
        if self.up is None:
            bias = None if self.bias is None else self.bias.flatten()
            return F.linear(x, self.weight.flatten(0, 1), bias).chunk(len(self.weight), dim=-1)
        if torch.is_grad_enabled():
            return _LowRank.apply(x, self.weight, self.up, self.bias).unbind()
        return _low_rank(x, self.weight, self.up, self.bias)[0].unbind()


class Stackable(nn.Module):
    """Base of a module several of whose layers read one input.

    Attributes:
        stacked: Gives all their outputs: `StackedLayers` while weights are stacked (see models/precision.py), or an inference
            module. None: each layer is called.
    """

    stacked: Callable[[Tensor], tuple[Tensor, ...]] | None

    def __init__(self) -> None:
        super().__init__()
        self.stacked = None

    def layers_of_one_input(self) -> list[nn.Module]:
        """The layers, in the order in which `stacked` gives their outputs."""
        raise NotImplementedError


@dataclass(frozen=True)
class Stack:
    """Layers that can be stacked.

    Args:
        name: Of `owner`.
        owner: Whose layers they are.
        parts: By the field of `StackedLayers`, where its K parameters stand.
    """

    name: str
    owner: Stackable
    parts: dict[str, list[Place]]


def find_stacks(model: nn.Module) -> list[Stack]:
    """All stacks of a model that are not stacked yet. Layers of unlike kinds, shapes or ranks are left to be called one by one."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Stackable) and module.stacked is None:
            places = [_places(layer) for layer in module.layers_of_one_input()]
            if len(places) > 1 and all(_alike(place, places[0]) for place in places):
                parts: dict[str, list[Place]] = {part: [place[part] for place in places] for part in places[0]}
                if all(_distinct(part) for part in parts.values()):
                    found.append(Stack(name, module, parts))
    return found


def stack_weights(model: nn.Module) -> None:
    """Lay the stacks' weights of a model that is never trained beside one another, in place. They stay its parameters."""
    for stack in find_stacks(model):
        whole = {}
        for part, places in stack.parts.items():
            parameters = [owner.get_parameter(name) for owner, name in places]
            whole[part] = torch.stack([parameter.detach() for parameter in parameters])
            for parameter, value in zip(parameters, whole[part].unbind(), strict=True):
                parameter.data = value
        stack.owner.stacked = StackedLayers(**whole)


def _places(layer: nn.Module) -> dict[str, Place]:
    """Where a Linear's or a low-rank layer's parameters stand; empty for any other layer."""
    if type(layer) is nn.Linear:
        place: dict[str, Place] = {"weight": (layer, "weight")}
        if layer.bias is not None:
            place["bias"] = layer, "bias"
        return place
    factors = dict(layer.named_children())
    if list(factors) != ["down", "up"] or any(type(factor) is not nn.Linear for factor in factors.values()):
        return {}
    down, up = _places(factors["down"]), _places(factors["up"])
    if "bias" in down:
        return {}
    return {"weight": down["weight"], "up": up["weight"]} | ({"bias": up["bias"]} if "bias" in up else {})


def _alike(one: dict[str, Place], other: dict[str, Place]) -> bool:
    return bool(one) and one.keys() == other.keys() and all(_kind(one[part]) == _kind(other[part]) for part in one)


def _kind(place: Place) -> tuple[Any, ...]:
    parameter = place[0].get_parameter(place[1])
    return parameter.shape, parameter.dtype, parameter.device, parameter.requires_grad


def _distinct(places: Sequence[Place]) -> bool:
    return len({id(owner.get_parameter(name)) for owner, name in places}) == len(places)


def _low_rank(x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Outputs [K, ..., O] and latents [K, N, R], these as a view.

    Args:
        x: [..., I].
        down: [K, R, I].
        up: [K, O, R].
        bias: [K, O], or None.
    """
    rows = x.reshape(-1, x.shape[-1])
    latent = (rows @ down.flatten(0, 1).t()).unflatten(1, down.shape[:2]).transpose(0, 1)
    expand = up.transpose(1, 2)
    out = torch.bmm(latent, expand) if bias is None else torch.baddbmm(bias[:, None], latent, expand)
    return out.unflatten(1, x.shape[:-1]), latent


class _LowRank(torch.autograd.Function):
    """`_low_rank` with a backward pass of as few products; weights' gradients come out laid as the weights are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None) -> Tensor:
        """The outputs.

        Args:
            ctx: Of the backward pass.
            x: [..., I].
            down: [K, R, I].
            up: [K, O, R].
            bias: [K, O], or None.
        """
        out, latent = _low_rank(x, down, up, bias)
        ctx.save_for_backward(x, down, up, latent)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, down, up, latent = ctx.saved_tensors
        rows, gradient = x.reshape(-1, x.shape[-1]), gradient.flatten(1, -2)
        of_x, of_down, of_up, of_bias = (None,) * 4
        if ctx.needs_input_grad[2]:
            of_up = torch.bmm(gradient.transpose(1, 2), latent)
        if ctx.needs_input_grad[3]:
            of_bias = gradient.sum(1)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            of_latent = gradient.new_empty(len(rows), *down.shape[:2])  # written as [K, N, R], read as [N, K R]
            torch.bmm(gradient, up, out=of_latent.transpose(0, 1))
            flat = of_latent.flatten(1)
            if ctx.needs_input_grad[1]:
                of_down = (flat.t() @ rows).view_as(down)
            if ctx.needs_input_grad[0]:
                of_x = (flat @ down.flatten(0, 1)).view_as(x)
        return of_x, of_down, of_up, of_bias
