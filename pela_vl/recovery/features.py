"""Feature distillation (FD), PELA eq. 4. N layers, B samples, L tokens, D width."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Streams = dict[str, tuple[Tensor, ...]]


@dataclass
class Features:
    """Hidden states of one forward pass that distillation pairs between student and teacher.

    Args:
        layers: By the name of a stream of layers, the states [B, L, D] (or of any shape that ends in the width) in order.
        masks: By the name of a stream, which of its tokens are real [B, L], 1 or 0; a stream left out has no padding.
        places: By the name of a stream, the places [B, K] of the tokens that its states stand for, where the model saw a
            part of the tokens; a stream left out stands for all.
        inputs: By the name of a stream, what its first layer read, where the stream's states do not begin with it.
    """

    layers: Streams = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    places: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def with_input(self, stream: str) -> tuple[Tensor, ...]:
        """A stream's states, beginning with what its first layer read."""
        first = (self.inputs[stream],) if stream in self.inputs else ()
        return (*first, *self.layers[stream])


def feature_distillation(student: Features, teacher: Features, form: str = "paper") -> Tensor:
    """Distance between student and teacher hidden states, paired layer by layer in every stream.

    Args:
        student: Its masks are used.
        teacher: Must have the same streams, and as many layers in each.
        form: "paper": 1/(2N) sum_i ||X_s^i - X_t^i||^2, the squared norm of a token's D features, averaged over the
            batch's real tokens. "released": the mean over the N layers of the mean squared error over all entries,
            padding included.

    Raises:
        ValueError: If the streams or the numbers of layers differ, or there are none.
    """
    if student.layers.keys() != teacher.layers.keys():
        raise ValueError(f"feature distillation pairs {sorted(student.layers)} with {sorted(teacher.layers)}")
    total, count = None, sum(len(layers) for layers in student.layers.values())
    for stream, layers in student.layers.items():
        mask = student.masks.get(stream)
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for state, target in zip(layers, teacher.layers[stream], strict=True):
            alike.setdefault(state.shape, []).append((state.float(), target.float()))
        for shape, pairs in alike.items():
            read = mask if form == "paper" else None
            distance = _SquaredDistance.apply(read, [target for _, target in pairs], *(state for state, _ in pairs))
            if form == "released":
                distance = distance / (count * shape.numel())
            else:
                tokens = shape[:-1].numel() if read is None else read.sum()
                distance = distance / (2 * count * tokens)
            total = distance if total is None else total + distance
    if total is None:
        raise ValueError("feature distillation: there are no hidden states")
    return total


class _SquaredDistance(torch.autograd.Function):
    """Sum of the squared differences of states and targets [B, L, D] at real tokens, all layers in a few operations.

    Of the layers nothing but their differences is kept for backward.
    """

    @staticmethod
    def forward(ctx: Any, mask: Tensor | None, targets: list[Tensor], *states: Tensor) -> Tensor:
        """The sum.

        Args:
            ctx: Of the backward pass.
            mask: Real tokens [B, L], 1 or 0; None for all.
            targets: Of every layer.
            states: Of every layer.
        """
        difference = torch.stack(states).sub_(torch.stack(targets))
        if mask is not None:
            difference.mul_(mask[..., None])
        ctx.save_for_backward(difference)
        return torch.linalg.vector_norm(difference, dim=-1).square_().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return None, None, *(difference * (2 * gradient)).unbind()
