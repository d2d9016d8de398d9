"""Attention scores, recomputed from the hidden states that go into a layer, so that no forward has to return them.

Shapes: B samples, N tokens, D width, H heads.
"""

from torch import Tensor, nn

from pela_vl.models.albef.bert import Layer


def image_scores(block: nn.Module, x: Tensor) -> Tensor:
    """Scores before the softmax, [B, H, N, N], of a timm ViT block on its input x [B, N, D]."""
    attention = block.attn
    mixed = attention.qkv(block.norm1(x.float())).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return _scores(attention.q_norm(mixed[0]), attention.k_norm(mixed[1]))


def text_scores(layer: Layer, x: Tensor) -> Tensor:
    """Scores of a BERT layer's self-attention before mask and softmax, [B, H, L, L], on its input x [B, L, D]."""
    heads = layer.attention.projections
    x = x.float()
    return _scores(heads.split(heads.query(x)), heads.split(heads.key(x)))


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


def attention_distance(own: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of scores [B, H, N, N], over pairs of real tokens where a mask [B, N] is given."""
    square = (own - target).square().mean(1)
    if mask is None:
        return square.mean()
    pairs = mask[:, :, None] * mask[:, None, :]
    return (square * pairs).sum() / pairs.sum()
