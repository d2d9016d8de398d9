"""Image-text contrastive loss (ITC) with momentum-distilled soft targets, ALBEF eq. 1 and 6.

Shapes: B samples, E joint width, A = B + queue candidates.
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
    """One-hot targets [B, A]: candidate i is sample i's own pair, as in pre-training."""
    return torch.eye(batch, candidates, device=device)


def distilled_targets(momentum_similarity: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """alpha * softmax(momentum similarity [B, A]) + (1 - alpha) * targets [B, A]"""
    return alpha * F.softmax(momentum_similarity.float(), dim=1) + (1.0 - alpha) * targets


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the rows of -sum(targets * log_softmax(logits)); logits and targets [B, A]."""
    return -(F.log_softmax(logits.float(), dim=1) * targets).sum(1).mean()
