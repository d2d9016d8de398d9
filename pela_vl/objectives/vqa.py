"""Visual question answering: weighted answers, decoded from the question, with soft labels of the momentum twin.

Shapes: B questions, L question tokens, A answers of all questions, T answer tokens, M predicted tokens, V words.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pela_vl.models.albef.bert import select_images
from pela_vl.models.albef.losses import distilled_cross_entropy, weighted_answer_loss
from pela_vl.models.albef.momentum import MomentumTwin
from pela_vl.models.albef.vqa import AlbefVqa
from pela_vl.models.outputs import StepOutput


class VqaBatch(Protocol):
    """images [B, 3, S, S]; ids, mask int64 [B, L]: the questions; answer_ids, answer_mask int64 [A, T]: [CLS], words,
    [SEP], padding, those of the first question first; weights float [A]; counts int64 [B]: answers of each question."""

    images: Tensor
    ids: Tensor
    mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    weights: Tensor
    counts: Tensor


@dataclass
class TokenTargets:
    """What the momentum twin says of a batch, without gradients: logits [M, V], or None where alpha is 0."""

    alpha: float
    logits: Tensor | None


def answer_logits(model: AlbefVqa, batch: VqaBatch, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits [M, V] and labels [M] of all answers' tokens; a question and its keys and values are computed once.

    states [B, L, D]: the fused questions, where they are known already.

    Raises ValueError if the counts do not add up to the number of answers.
    """
    if int(batch.counts.sum()) != len(batch.answer_ids):
        raise ValueError(
            f"the counts add up to {int(batch.counts.sum())}, but there are {len(batch.answer_ids)} answers"
        )
    if states is None:
        states = model.encode_question(batch.images, batch.ids, batch.mask)
    question = torch.arange(len(states), device=states.device).repeat_interleave(batch.counts)
    keys_values = select_images(model.text_decoder.question_keys_values(states), question)
    return model.text_decoder.next_token_logits(batch.answer_ids, batch.answer_mask, keys_values, batch.mask[question])


class VqaStep(nn.Module):
    """The trainable half: the weighted answers' loss (term "answer")."""

    def __init__(self, model: AlbefVqa, keep_hidden: bool = False):
        """keep_hidden: return the hidden states of both encoders."""
        super().__init__()
        self.model = model
        self.keep_hidden = keep_hidden

    def forward(self, batch: VqaBatch, targets: TokenTargets) -> StepOutput:
        states, image, text = self.model.question_hidden(
            batch.images, batch.ids, batch.mask, keep_hidden=self.keep_hidden
        )
        logits, labels = answer_logits(self.model, batch, states)
        tokens = distilled_cross_entropy(logits, labels, targets.logits, targets.alpha)
        loss = weighted_answer_loss(tokens, batch.answer_mask, batch.weights, len(batch.images))
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        hidden = {"image": image.hidden, "text": text.hidden} if self.keep_hidden else {}
        return StepOutput({"answer": loss}, hidden, {"token_accuracy": accuracy}, image.kept)


class VqaObjective:
    """The step above with its momentum twin."""

    def __init__(self, model: AlbefVqa, momentum: float = 0.995, keep_hidden: bool = False):
        self.module = VqaStep(model, keep_hidden)
        self.companions = nn.ModuleDict({"twin": MomentumTwin(model)})
        self.momentum = momentum

    @torch.no_grad()
    def prepare(self, batch: VqaBatch, alpha: float, new_step: bool) -> TokenTargets:
        """Update the twin at the start of an optimiser step, then compute its logits."""
        twin = self.companions["twin"]
        if new_step:
            twin.update(self.module.model, self.momentum)
        return TokenTargets(alpha, answer_logits(twin.model, batch)[0] if alpha > 0 else None)

    def finish(self, batch: VqaBatch, prepared: TokenTargets) -> None:
        """Nothing to keep of a batch."""
