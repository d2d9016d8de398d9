"""Distance between the attention scores of two models. B samples, N tokens, H heads."""

from torch import Tensor


def attention_distance(scores: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of two models' attention scores, over heads and pairs of tokens.

    Args:
        scores: The student's, before softmax, [B, H, N, N].
        target: The teacher's, of the same shape.
        mask: Real tokens [B, N], 1 or 0: only pairs of two real tokens count. None counts all pairs.
    """
    square = (scores - target).square().mean(1)
    if mask is None:
        return square.mean()
    pairs = mask[:, :, None] * mask[:, None, :]
    return (square * pairs).sum() / pairs.sum()
