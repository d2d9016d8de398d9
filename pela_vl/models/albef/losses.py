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

    A row whose allowed weights all underflow to zero draws evenly.

    Args:
        similarity: [B, B].
        forbidden: Bool [B, B]: a sample's own pair, and every pair of the same image.
        generator: Source of randomness; None for torch's own.

    Returns:
        Column indices [B]; `NO_NEGATIVE` where a row allows none (a batch of 1).

    Raises:
        FloatingPointError: If a similarity is not finite.
    """
    if not torch.isfinite(similarity).all():
        raise FloatingPointError("hard-negative sampling: the image-text similarities contain NaN or infinity")
    weights = F.softmax(similarity.float(), dim=1).masked_fill(forbidden, 0.0)
    allowed = (~forbidden).float()
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, allowed)
    possible = allowed.sum(1) > 0
    index = torch.multinomial(torch.where(possible[:, None], weights, torch.ones_like(weights)), 1, generator=generator)
    return torch.where(possible, index[:, 0], NO_NEGATIVE)


def matching_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Cross-entropy over the logits of matching [P, 2] and non-matching [M, 2] pairs, each pair counted once."""
    logits = torch.cat([positive, negative]).float()
    labels = torch.cat([logits.new_ones(len(positive)), logits.new_zeros(len(negative))]).long()
    return F.cross_entropy(logits, labels)


def masked_language_loss(logits: Tensor, labels: Tensor, momentum_logits: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy to softmax(momentum logits), mean over the masked tokens.

    Args:
        logits: At masked tokens alone, [M, V].
        labels: Original tokens [M].
        momentum_logits: The EMA model's [M, V]; None for plain cross-entropy.
        alpha: Weight of the soft part, 0 to 1.

    Returns:
        The loss; zero, with a graph, where M is 0.
    """
    if labels.numel() == 0:
        return logits.float().sum() * 0.0
    hard = F.cross_entropy(logits.float(), labels)
    if momentum_logits is None or alpha == 0.0:
        return hard
    soft = -(F.log_softmax(logits.float(), dim=-1) * F.softmax(momentum_logits.float(), dim=-1)).sum(-1).mean()
    return (1.0 - alpha) * hard + alpha * soft


def distilled_cross_entropy(logits: Tensor, labels: Tensor, momentum_logits: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy to softmax(momentum logits), for every row: [M].

    Args:
        logits: [M, V].
        labels: [M].
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
