"""What the engine asks of an objective."""

from typing import Any, Protocol

from torch import nn

from pela_vl.models.outputs import StepOutput


class Objective(Protocol):
    """One task's training step, split so that model forwards have no side effects.

    `module` is the trainable part, the one the engine wraps (and DeepSpeed owns); its forward is
    `module(batch, prepared) -> StepOutput`.
    `companions` are the modules beside it (momentum twin, queues) that a resumed run must get back.
    """

    module: nn.Module
    companions: nn.ModuleDict

    def prepare(self, batch: Any, alpha: float, new_step: bool) -> Any:
        """Without gradients, before the forward: momentum update (once per optimiser step), soft targets."""

    def finish(self, batch: Any, prepared: Any) -> None:
        """After the optimiser step: push queues."""


def loss_sum(output: StepOutput) -> Any:
    """The scalar to differentiate: the sum of all named terms."""
    return sum(output.terms.values())
