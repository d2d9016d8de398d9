"""Weights in the type that a model computes in, made once and not anew at every use.

Autocast casts a weight at its use, a kernel each. What is cast here is what autocast would cast, and to the same values:
weights and biases of Linears and convolutions. Everything else (LayerNorms, embeddings) keeps its type.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Model = TypeVar("Model", bound=nn.Module)

_CAST = (nn.Linear, nn.Conv2d)
_BLOCK = re.compile(r"^.*?\.\d+(?=\.)")


def cast_at_use(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that autocast would cast, by name; a shared one once."""
    found = {}
    for owner, module in model.named_modules():
        if type(module) in _CAST:
            for name, parameter in module.named_parameters(recurse=False):
                found[f"{owner}.{name}" if owner else name] = parameter
    return found


def cast_weights(model: Model, dtype: torch.dtype) -> Model:
    """Give a model that is never trained its Linear and convolution weights in `dtype`, in place; returns it.

    Under autocast its outputs stay the same, bit by bit.
    """
    for parameter in cast_at_use(model).values():
        parameter.data = parameter.data.to(dtype)
    return model


def cast_copy(model: Model, dtype: torch.dtype) -> Model:
    """A copy of a model that is never trained for computing: `cast_weights` of it, sharing all other tensors with it."""
    cast = cast_at_use(model)
    replaced: dict[int, Any] = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
    replaced |= {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in cast.values()}
    return copy.deepcopy(model, replaced)


class WeightCasts:
    """The casts of a trained model's weights, one operation for each of its blocks and not one for each weight.

    Gradients go back to the fp32 parameters in one operation a block too, as soon as the block's backward is done.

    Args:
        model: Its parameters stay as they are.
        dtype: What autocast casts to.

    Attributes:
        routes: Of the latest pass, by the id of a trained parameter that was cast: where further gradients of it may join.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self.dtype = dtype
        self.routes: dict[int, GradientRoute] = {}
        modules = dict(model.named_modules())
        self._blocks: dict[tuple[str, bool], list[tuple[dict[str, Any], str]]] = {}
        for full, parameter in cast_at_use(model).items():
            owner, _, name = full.rpartition(".")
            block = _BLOCK.match(full)
            key = (block[0] if block else "", parameter.requires_grad)
            self._blocks.setdefault(key, []).append((modules[owner]._parameters, name))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the modules see their weights in `dtype`."""
        kept: list[tuple[dict[str, Any], str, Any]] = []
        self.routes = {}
        try:
            for places in self._blocks.values():
                parameters = [owner[name] for owner, name in places]
                further: dict[int, Tensor] = {}
                *casts, anchor = _Cast.apply(self.dtype, further, *parameters)
                if anchor.requires_grad:
                    self.routes |= {id(parameter): GradientRoute(anchor, further) for parameter in parameters}
                for (owner, name), cast in zip(places, casts, strict=True):
                    kept.append((owner, name, owner[name]))
                    owner[name] = cast
            yield
        finally:
            for owner, name, parameter in kept:
                owner[name] = parameter


@dataclass(frozen=True)
class GradientRoute:
    """How a gradient of some parameters joins those of a pass, in one operation for a block of them.

    Args:
        anchor: What a function has as its input whose backward adds to `further`; it then runs before the block's.
        further: Gradients to be added, by the id of their parameters.
    """

    anchor: Tensor
    further: dict[int, Tensor]


class _Cast(torch.autograd.Function):
    """Several tensors in another type, and an anchor (see `GradientRoute`)."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, further: dict[int, Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Cast.

        Args:
            ctx: Of the backward pass.
            dtype: What to cast to.
            further: See `GradientRoute`.
            tensors: What is cast.
        """
        ctx.set_materialize_grads(False)
        ctx.dtypes, ctx.ids, ctx.further = (
            [tensor.dtype for tensor in tensors],
            [id(tensor) for tensor in tensors],
            further,
        )
        return *_cast(tensors, [dtype] * len(tensors)), tensors[0].new_empty(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [(place, gradient) for place, gradient in enumerate(gradients[:-1]) if gradient is not None]
        cast = _cast([gradient for _, gradient in present], [ctx.dtypes[place] for place, _ in present])
        found: list[Tensor | None] = [None] * len(ctx.ids)
        for (place, _), gradient in zip(present, cast, strict=True):
            found[place] = gradient
        further = [ctx.further.pop(number, None) for number in ctx.ids]
        both = [
            (first, second)
            for first, second in zip(found, further, strict=True)
            if first is not None and second is not None
        ]
        if both:
            torch._foreach_add_([first for first, _ in both], [second for _, second in both])
        return (
            None,
            None,
            *(first if first is not None else second for first, second in zip(found, further, strict=True)),
        )


def _cast(tensors: Any, dtypes: list[torch.dtype]) -> list[Tensor]:
    out = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    if out:
        torch._foreach_copy_(out, list(tensors))
    return out
