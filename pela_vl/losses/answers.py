"""Losses of the classifier and of the answer decoder, with momentum-distilled soft targets (ALBEF eq. 6 and 7)."""

import torch.nn.functional as F
from torch import Tensor


def distilled_cross_entropy(logits: Tensor, labels: Tensor, momentum_logits: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy to softmax(momentum logits), for every row: [M].

    logits, momentum_logits [M, V]; labels [M]. Plain cross-entropy without momentum logits or with alpha 0.
    """
    logits = logits.float()
    hard = F.cross_entropy(logits, labels, reduction="none")
    if momentum_logits is None or alpha == 0.0:
        return hard
    soft = -(F.log_softmax(logits, dim=1) * F.softmax(momentum_logits.float(), dim=1)).sum(1)
    return (1.0 - alpha) * hard + alpha * soft


def weighted_answer_loss(token_losses: Tensor, mask: Tensor, weights: Tensor, questions: int) -> Tensor:
    """Sum over the answers of weight * (sum of the answer's token losses), over the number of questions.

    token_losses [M]: of every token of the answers but the first, in row-major order; mask [A, T]; weights [A].
    """
    tokens = mask[:, 1:].bool()
    per_token = weights.float()[:, None].expand(tokens.shape)[tokens]
    return (per_token * token_losses).sum() / questions
