"""Visual entailment: classification with soft targets of the momentum twin. B pairs, L text tokens."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pela_vl.losses.answers import distilled_cross_entropy
from pela_vl.models.entailment import AlbefEntailment
from pela_vl.models.momentum import MomentumTwin
from pela_vl.models.outputs import StepOutput


class EntailmentBatch(Protocol):
    """images [B, 3, S, S]; ids, mask int64 [B, L]; targets int64 [B], indices of `models.entailment.CLASSES`."""

    images: Tensor
    ids: Tensor
    mask: Tensor
    targets: Tensor


@dataclass
class ClassTargets:
    """What the momentum twin says of a batch, without gradients: logits [B, 3], or None where alpha is 0."""

    alpha: float
    logits: Tensor | None


class EntailmentStep(nn.Module):
    """The trainable half: (1 - alpha) * CE + alpha * CE to the twin's softmax, mean over the batch (term "ce")."""

    def __init__(self, model: AlbefEntailment):
        super().__init__()
        self.model = model

    def forward(self, batch: EntailmentBatch, targets: ClassTargets) -> StepOutput:
        logits = self.model(batch.images, batch.ids, batch.mask)
        loss = distilled_cross_entropy(logits, batch.targets, targets.logits, targets.alpha).mean()
        accuracy = (logits.detach().argmax(1) == batch.targets).float().mean()
        return StepOutput({"ce": loss}, metrics={"accuracy": accuracy})


class EntailmentObjective:
    """The step above with its momentum twin."""

    def __init__(self, model: AlbefEntailment, momentum: float = 0.995):
        self.module = EntailmentStep(model)
        self.companions = nn.ModuleDict({"twin": MomentumTwin(model)})
        self.momentum = momentum

    @torch.no_grad()
    def prepare(self, batch: EntailmentBatch, alpha: float, new_step: bool) -> ClassTargets:
        """Update the twin at the start of an optimiser step, then compute its logits."""
        twin = self.companions["twin"]
        if new_step:
            twin.update(self.module.model, self.momentum)
        return ClassTargets(alpha, twin.model(batch.images, batch.ids, batch.mask) if alpha > 0 else None)

    def finish(self, batch: EntailmentBatch, prepared: ClassTargets) -> None:
        """Nothing to keep of a batch."""
