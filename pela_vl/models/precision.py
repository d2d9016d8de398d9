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

from pela_vl.models.stacked import Stackable, StackedLayers, find_stacks, stack_weights

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

    Layers of one input are computed in one product. Under autocast the outputs stay the same, to the order of summation.
    """
    for parameter in cast_at_use(model).values():
        parameter.data = parameter.data.to(dtype)
    stack_weights(model)
    return model


def cast_copy(model: Model, dtype: torch.dtype) -> Model:
    """A copy of a model that is never trained for computing: `cast_weights` of it, sharing all other tensors with it."""
    cast = cast_at_use(model)
    replaced: dict[int, Any] = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
    replaced |= {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in cast.values()}
    copied = copy.deepcopy(model, replaced)
    stack_weights(copied)
    return copied


class WeightCasts:
    """The casts of a trained model's weights, one operation for each of its blocks and not one for each weight.

    Gradients go back to the fp32 parameters in one operation a block too, as soon as the block's backward is done. Layers of
    one input (models/stacked.py) are cast into one tensor, and computed in one product.

    Args:
        model: Its parameters stay as they are.
        dtype: What autocast casts to.

    Attributes:
        routes: Of the latest pass, by the id of a trained parameter that was cast: where further gradients of it may join.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self.dtype = dtype
        self.routes: dict[int, GradientRoute] = {}
        self._blocks: dict[tuple[str, bool], list[_Places]] = {}
        self._stacks: list[tuple[Stackable, dict[str, _Places]]] = []
        stacked = set()
        for stack in find_stacks(model):
            parts = {
                part: [(owner._parameters, name) for owner, name in places] for part, places in stack.parts.items()
            }
            self._stacks.append((stack.owner, parts))
            for places in parts.values():
                parameters: list[Any] = [owner[name] for owner, name in places]
                stacked |= {id(parameter) for parameter in parameters}
                self._add(_block_of(f"{stack.name}.", f"{stack.name}.stacked"), parameters[0], places)
        modules = dict(model.named_modules())
        for full, parameter in cast_at_use(model).items():
            if id(parameter) not in stacked:
                owner, _, name = full.rpartition(".")
                self._add(_block_of(full, ""), parameter, [(modules[owner]._parameters, name)])

    def _add(self, block: str, parameter: nn.Parameter, places: "_Places") -> None:
        self._blocks.setdefault((block, parameter.requires_grad), []).append(places)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the modules see their weights in `dtype`."""
        kept: list[tuple[dict[str, Any], str, Any]] = []
        whole: dict[int, Tensor] = {}
        self.routes = {}
        try:
            for block in self._blocks.values():
                parameters = [owner[name] for places in block for owner, name in places]
                further: dict[int, Tensor] = {}
                *casts, anchor = _Cast.apply(self.dtype, further, [len(places) for places in block], *parameters)
                if anchor.requires_grad:
                    self.routes |= {id(parameter): GradientRoute(anchor, further) for parameter in parameters}
                for places, cast in zip(block, casts, strict=True):
                    whole[id(places)] = cast
                    for (owner, name), part in zip(places, _parts(cast, len(places)), strict=True):
                        kept.append((owner, name, owner[name]))
                        owner[name] = part
            for module, parts in self._stacks:
                module.stacked = StackedLayers(**{part: whole[id(places)] for part, places in parts.items()})
            yield
        finally:
            for owner, name, parameter in kept:
                owner[name] = parameter
            for module, _ in self._stacks:
                module.stacked = None


_Places = list[tuple[dict[str, Any], str]]
"""Where parameters stand: modules' dictionaries of parameters, and names. More than one are stacked."""


@dataclass(frozen=True)
class GradientRoute:
    """How a gradient of some parameters joins those of a pass, in one operation for a block of them.

    Args:
        anchor: What a function has as its input whose backward adds to `further`; it then runs before the block's.
        further: Gradients to be added, by the id of their parameters.
    """

    anchor: Tensor
    further: dict[int, Tensor]


def _block_of(name: str, otherwise: str) -> str:
    """The block that a parameter stands in: its name up to the first number."""
    block = _BLOCK.match(name)
    return block[0] if block else otherwise


class _Cast(torch.autograd.Function):
    """Several tensors in another type, some of them stacked, and an anchor (see `GradientRoute`)."""

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, further: dict[int, Tensor], sizes: list[int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Cast.

        Args:
            ctx: Of the backward pass.
            dtype: What to cast to.
            further: See `GradientRoute`.
            sizes: How many tensors, in their order, make one output; more than one are stacked.
            tensors: What is cast.
        """
        ctx.set_materialize_grads(False)
        ctx.dtypes, ctx.ids, ctx.further, ctx.sizes = (
            [tensor.dtype for tensor in tensors],
            [id(tensor) for tensor in tensors],
            further,
            sizes,
        )
        whole, parts, first = [], [], 0
        for size in sizes:
            shape = tensors[first].shape if size == 1 else (size, *tensors[first].shape)
            whole.append(tensors[first].new_empty(shape, dtype=dtype))
            parts += _parts(whole[-1], size)
            first += size
        torch._foreach_copy_(parts, list(tensors))
        return *whole, tensors[0].new_empty(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        whole = zip(gradients[:-1], ctx.sizes, strict=True)
        parts = [part for gradient, size in whole for part in _parts(gradient, size)]
        present = [(place, gradient) for place, gradient in enumerate(parts) if gradient is not None]
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
            None,
            *(first if first is not None else second for first, second in zip(found, further, strict=True)),
        )


def _parts(tensor: Any, size: int) -> Any:
    """The parts of an output of `_Cast`, or of its gradient; that may be None."""
    if size == 1 or tensor is None:
        return [tensor] * size
    return tensor.unbind()


def _cast(tensors: Any, dtypes: list[torch.dtype]) -> list[Tensor]:
    out = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    if out:
        torch._foreach_copy_(out, list(tensors))
    return out
