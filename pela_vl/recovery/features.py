"""Feature distillation (FD), PELA eq. 4. N layers, B samples, L tokens, D width."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
        ValueError: If the streams or the numbers of layers differ.
    """
    if student.layers.keys() != teacher.layers.keys():
        raise ValueError(f"feature distillation pairs {sorted(student.layers)} with {sorted(teacher.layers)}")
    distances = []
    for stream, layers in student.layers.items():
        mask = student.masks.get(stream)
        for state, target in zip(layers, teacher.layers[stream], strict=True):
            square = (state.float() - target.float()).square()
            if form == "released":
                distances.append(square.mean())
            elif mask is None:
                distances.append(square.sum(-1).mean())
            else:
                distances.append((square.sum(-1) * mask).sum() / mask.sum())
    total = torch.stack(distances).mean()
    return total if form == "released" else total / 2
