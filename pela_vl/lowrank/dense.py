"""The dense layers that can become low rank: torch's Linear, and GPT-2's Conv1D, a Linear whose weight is stored transposed.

Shapes: O = output width, I = input width.
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Dense: TypeAlias = Any
"""nn.Linear, or transformers' Conv1D, which cannot be named here because transformers is not imported."""


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D (y = x W + b with W [I, O]), by class name: transformers is not
    imported.
    """
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", None) is not None


def is_dense(module: nn.Module) -> bool:
    """Whether a module is a Linear or of a subclass, or a Conv1D."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def in_out(module: Dense) -> tuple[int, int]:
    """(I, O) of a dense layer."""
    if is_conv1d(module):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def weight_of(module: Dense) -> Tensor:
    """The weight [O, I] of a dense layer."""
    return module.weight.T if is_conv1d(module) else module.weight


def dense_layer(kind: Any, weight: Tensor, bias: nn.Parameter | None, requires_grad: bool) -> Dense:
    """A new dense layer of some values.

    Args:
        kind: class of the layer, nn.Linear or transformers' Conv1D.
        weight: W [O, I], whatever way round the class stores it.
        bias: [O], used as it is; None for a Linear without bias.
        requires_grad: of the weight.
    """
    outputs, inputs = weight.shape
    with torch.device("meta"):  # values are assigned next; on meta no random number is drawn for them
        layer: Dense = nn.Linear(inputs, outputs, bias is not None) if kind is nn.Linear else kind(outputs, inputs)
    stored = weight if kind is nn.Linear else weight.T
    layer.weight = nn.Parameter(stored.detach().contiguous(), requires_grad)
    layer.bias = bias
    return layer
