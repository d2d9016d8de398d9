"""Visual entailment: classification with soft targets of the momentum twin. B pairs, L text tokens."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pela_vl.models.albef.entailment import AlbefEntailment
from pela_vl.models.albef.losses import distilled_cross_entropy
from pela_vl.models.albef.momentum import MomentumTwin
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

    def __init__(self, model: AlbefEntailment, keep_hidden: bool = False):
        """keep_hidden: return the hidden states of both encoders."""
        super().__init__()
        self.model = model
        self.keep_hidden = keep_hidden

    def forward(self, batch: EntailmentBatch, targets: ClassTargets) -> StepOutput:
        image = self.model.visual_encoder(batch.images, self.keep_hidden)
        text = self.model.text_encoder.encode(batch.ids, batch.mask, self.keep_hidden)
        logits = self.model.judge(text.tokens, batch.mask, self.model.text_encoder.image_keys_values(image.tokens))
        loss = distilled_cross_entropy(logits, batch.targets, targets.logits, targets.alpha).mean()
        accuracy = (logits.detach().argmax(1) == batch.targets).float().mean()
        hidden = {"image": image.hidden, "text": text.hidden} if self.keep_hidden else {}
        return StepOutput({"ce": loss}, hidden, {"accuracy": accuracy}, image.kept)


class EntailmentObjective:
    """The step above with its momentum twin."""

    def __init__(self, model: AlbefEntailment, momentum: float = 0.995, keep_hidden: bool = False):
        self.module = EntailmentStep(model, keep_hidden)
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
