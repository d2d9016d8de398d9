"""An exponential moving average (EMA) of a model's weights; ALBEF calls it the momentum model."""

import copy
from collections.abc import Mapping
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from pela_vl.models.precision import cast_at_use, cast_copy

Model = TypeVar("Model", bound=nn.Module)


class EmaModel(nn.Module, Generic[Model]):
    """A copy of a model that is never trained and follows it, paired by parameter name.

    It is made after compression, so that it has the trained model's shape. It stays in eval mode.

    Args:
        trained: The model to follow.
        without: Names of parts that the copy does not need.
    """

    def __init__(self, trained: Model, without: tuple[str, ...] = ()):
        super().__init__()
        self.model: Model = copy.deepcopy(trained)
        for name in without:
            setattr(self.model, name, None)
        self.model.requires_grad_(False)
        self.train(False)
        self._cast: tuple[Model, ...] = ()  # a tuple, so that it is no submodule and not part of the state
        self._casts: tuple[list[Tensor], list[Tensor]] = ([], [])

    @property
    def for_targets(self) -> Model:
        """The model that soft targets are read from: `model`, or its copy with weights in the type that is computed in."""
        return self._cast[0] if self._cast else self.model

    def compute_in(self, dtype: torch.dtype) -> None:
        """Keep a copy of the Linear and convolution weights in `dtype`, which `update` writes.

        The averages themselves keep their type: in bf16 a small step would be lost. It is called when the weights are where
        they are to stay, and takes the memory of those weights in `dtype`.
        """
        self._cast = (cast_copy(self.model, dtype),)
        self._casts = list(cast_at_use(self._cast[0]).values()), list(cast_at_use(self.model).values())

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: its predictions are without dropout."""
        return super().train(False)

    @torch.no_grad()
    def update(self, trained: nn.Module, momentum: float) -> None:
        """ema = momentum * ema + (1 - momentum) * trained, parameter by parameter.

        Raises KeyError if a parameter has no partner of its name.
        """
        partners = dict(trained.named_parameters())
        pairs = [(ema, partners[name]) for name, ema in self.model.named_parameters()]
        torch._foreach_lerp_([ema for ema, _ in pairs], [new.to(ema.dtype) for ema, new in pairs], 1.0 - momentum)
        if self._cast:
            torch._foreach_copy_(*self._casts)

    def start_from(self, weights: Mapping[str, Tensor]) -> bool:
        """Take a checkpoint's EMA weights, by the trained model's names.

        Returns:
            Whether they fit; where one is missing or has another shape, nothing is taken.
        """
        wanted = self.model.state_dict()
        if any(name not in weights or weights[name].shape != value.shape for name, value in wanted.items()):
            return False
        self.model.load_state_dict({name: weights[name] for name in wanted})
        return True
