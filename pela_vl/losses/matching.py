"""Image-text matching (ITM): which wrong pairs to show, and the loss. B samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

NO_NEGATIVE = -1


def sample_negatives(similarity: Tensor, forbidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one in-batch negative a row, in proportion to softmax(similarity) with the forbidden pairs left out.

    similarity [B, B], forbidden bool [B, B] (own pair and every pair of the same image) -> index [B], or
    `NO_NEGATIVE` where a row allows none (a batch of 1). A row whose allowed weights all underflow to zero draws evenly.
    Raises FloatingPointError if a similarity is not finite.
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
