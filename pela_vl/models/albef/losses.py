"""ALBEF's loss functions with momentum-distilled soft targets: tensors in, scalars out.

Shapes: B samples, E joint width, A = B + queue candidates, M masked or predicted tokens, T answer tokens, V words.
Source: ALBEF (Li et al., NeurIPS 2021), equations 1, 2, 4, 6 and 7.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def positive_targets(ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """One-hot targets [B, A] spread evenly over the candidates with the same image id.

    ids [B], candidate_ids [A]; a sample's own pair must be among its candidates.
    """
    same = (ids[:, None] == candidate_ids[None, :]).float()
    return same / same.sum(1, keepdim=True)


def diagonal_targets(batch: int, candidates: int, device: torch.device | str) -> Tensor:
    """One-hot targets [B, A]: candidate i is sample i's own pair, as in pre-training.

    Args:
        batch: B.
        candidates: A, at least B.
        device: Where the targets are needed.
    """
    return torch.eye(batch, candidates, device=device)


def distilled_targets(momentum_similarity: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """Soft targets [B, A]: alpha * softmax(momentum similarity) + (1 - alpha) * targets.

    Args:
        momentum_similarity: The EMA model's (or teacher's) similarities, divided by the temperature, [B, A].
        targets: One-hot or evenly spread targets [B, A].
        alpha: Weight of the soft part, 0 to 1.
    """
    return alpha * F.softmax(momentum_similarity.float(), dim=1) + (1.0 - alpha) * targets


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the rows of -sum(targets * log_softmax(logits)); logits and targets [B, A]."""
    return -(F.log_softmax(logits.float(), dim=1) * targets).sum(1).mean()


NO_NEGATIVE = -1


def sample_negatives(similarity: Tensor, forbidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one negative of the batch for each row, in proportion to softmax(similarity) without the forbidden pairs.

    Nothing is read on the host. Of a row that is not finite any pair may be drawn: whoever trains on it watches the
    similarities.

    Args:
        similarity: [B, B].
        forbidden: bool [B, B], own pair and every pair of the same image.
        generator: Of the draws; None is torch's own.

    Returns:
        Index [B], or `NO_NEGATIVE` where a row allows none (a batch of 1). A row whose allowed weights all underflow to zero
        draws evenly.
    """
    weights = F.softmax(similarity.float(), dim=1).masked_fill(forbidden, 0.0)
    allowed = (~forbidden).float()
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, allowed)
    # the largest of weight / exponential draw, as torch.multinomial draws one; that checks its input on the host, or stops
    # a GPU for good
    index = (weights / torch.empty_like(weights).exponential_(1, generator=generator)).argmax(1)
    return torch.where(forbidden.all(1), NO_NEGATIVE, index)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of matching logits [P, 2] to labels [P]: 1 for a pair that matches, 0 for one that does not,
    `NO_NEGATIVE` for one that does not count."""
    return F.cross_entropy(logits.float(), labels, ignore_index=NO_NEGATIVE)


def masked_language_loss(logits: Tensor, labels: Tensor, momentum_logits: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy to softmax(momentum logits), mean over the masked tokens.

    Args:
        logits: At masked tokens, and at others that do not count, [M, V].
        labels: Original tokens [M]; -100 for a token that does not count.
        momentum_logits: The EMA model's [M, V]; None for plain cross-entropy.
        alpha: Weight of the soft part, 0 to 1.

    Returns:
        The loss; zero, with a graph, where no token counts.
    """
    counted = (labels >= 0).float()
    losses = distilled_cross_entropy(logits, labels, momentum_logits, alpha)
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def distilled_cross_entropy(logits: Tensor, labels: Tensor, momentum_logits: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy to softmax(momentum logits), for every row: [M].

    Args:
        logits: [M, V].
        labels: [M]; of -100 the first term is 0.
        momentum_logits: The EMA model's [M, V]; None for plain cross-entropy.
        alpha: Weight of the soft part, 0 to 1.
    """
    logits = logits.float()
    hard = F.cross_entropy(logits, labels, reduction="none")
    if momentum_logits is None or alpha == 0.0:
        return hard
    soft = -(F.log_softmax(logits, dim=1) * F.softmax(momentum_logits.float(), dim=1)).sum(1)
    return (1.0 - alpha) * hard + alpha * soft


def weighted_answer_loss(token_losses: Tensor, mask: Tensor, weights: Tensor, questions: int) -> Tensor:
    """Sum over the answers of weight * (sum of the answer's token losses), divided by the number of questions.

    Args:
        token_losses: Of every token of the answers but the first, padding left out, in row-major order, [M].
        mask: Real tokens of the answers [A, T], 1 or 0.
        weights: Of the answers [A].
        questions: Number of questions in the batch.
    """
    tokens = mask[:, 1:].bool()
    per_token = weights.float()[:, None].expand(tokens.shape)[tokens]
    return (per_token * token_losses).sum() / questions
