"""Distance between the attention scores of two models. B samples, N tokens, H heads."""

from torch import Tensor


def attention_distance(scores: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of scores [B, H, N, N], over pairs of real tokens where a mask [B, N] is given."""
    square = (scores - target).square().mean(1)
    if mask is None:
        return square.mean()
    pairs = mask[:, :, None] * mask[:, None, :]
    return (square * pairs).sum() / pairs.sum()
