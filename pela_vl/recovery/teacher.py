"""The frozen original model as teacher."""

from collections.abc import Callable, Collection
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pela_vl.recovery.features import Features

Model = TypeVar("Model", bound=nn.Module)


class Pass(Protocol):
    """One forward pass of a model on a batch, as a task makes it with student and teacher alike."""

    def features(self, streams: Collection[str] | None = None) -> Features:
        """The hidden states that distillation pairs; only of the named streams where `streams` is not None."""


class FrozenTeacher(Generic[Model]):
    """The dense model made before compression: without gradients, always in eval mode.

    It is deliberately not a Module. So nothing can train it, write it into a checkpoint or put it in train mode.

    Args:
        model: The dense model; it is frozen in place.
        run: run(model, batch) makes the task's forward pass, the same for student and teacher.
    """

    def __init__(self, model: Model, run: Callable[[Model, Any], Pass]):
        self.model: Model = model.requires_grad_(False).eval()
        self._run = run
        self._last: tuple[Any, Pass] | None = None

    @torch.no_grad()
    def run(self, batch: Any) -> Any:
        """The forward pass on a batch. The latest batch's pass is remembered, so that soft targets and distillation share one."""
        if self._last is None or self._last[0] is not batch:
            self._last = batch, self._run(self.model, batch)
        return self._last[1]

    @torch.no_grad()
    def features(self, batch: Any, streams: Collection[str] | None = None) -> Features:
        """What distillation pairs, see `Pass.features`. The pass is not remembered beyond this call."""
        found = self.run(batch).features(streams)
        self._last = None
        return found

    def linear_weights(self) -> dict[str, Tensor]:
        """Weight [out, in] of every Linear, by module name."""
        return {name: m.weight for name, m in self.model.named_modules() if isinstance(m, nn.Linear)}
