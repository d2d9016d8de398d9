"""The dense layers that can become low rank: torch's Linear, and GPT-2's Conv1D, a Linear whose weight is stored transposed.

Shapes: O = output width, I = input width.
"""

from typing import Any, TypeAlias

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
