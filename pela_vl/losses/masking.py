"""Masked language modelling (MLM) with momentum-distilled soft labels, ALBEF eq. 4 and 7. M masked tokens, V words."""

import torch.nn.functional as F
from torch import Tensor


def masked_language_loss(logits: Tensor, labels: Tensor, momentum_logits: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy to softmax(momentum logits), mean over the masked tokens.

    logits, momentum_logits [M, V] and labels [M] at masked tokens only; zero (with a graph) when M is 0.
    """
    if labels.numel() == 0:
        return logits.float().sum() * 0.0
    hard = F.cross_entropy(logits.float(), labels)
    if momentum_logits is None or alpha == 0.0:
        return hard
    soft = -(F.log_softmax(logits.float(), dim=-1) * F.softmax(momentum_logits.float(), dim=-1)).sum(-1).mean()
    return (1.0 - alpha) * hard + alpha * soft
