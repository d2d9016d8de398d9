"""Grad-CAM on attention maps, as ALBEF's weakly supervised grounding does it: tensors in, tensors out.

Shapes: B pairs, H heads, L text tokens, N = 1 + h * w image tokens (class token first), h x w the grid of patches, M <= N the
tokens that are left where the image encoder merges alike ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gradcam(attention: Tensor, gradient: Tensor) -> Tensor:
    """Attention times its gradient where that is positive, mean over the heads: [B, H, ...] twice -> [B, ...]."""
    return (attention * gradient.clamp(min=0)).mean(1)


def hand_back(maps: Tensor, source: Tensor | None, size: Tensor | None = None) -> Tensor:
    """Maps [B, ..., M] over merged tokens -> [B, ..., N]: every original place gets what it would have as a token of its own.

    source [B, N]: the merged token that each place is part of; None: nothing was merged. size [B, M] is given where the
    attention was proportional, that is counted a token as often as places were merged into it: then a token's attention is
    the sum of its places', and each gets an equal share. Without, attention took it for one token, whatever its size: it
    has the attention that each of its places alone would have next to tokens of other kinds, and each gets all of it.
    Gradients of the score are the same for every place of a token, as the token's value is: so the product of attention and
    gradient may be handed back in place of both.
    """
    if source is None:
        return maps
    between = (1,) * (maps.dim() - 2)
    maps = maps if size is None else maps / size.view(len(size), *between, -1)
    return maps.gather(-1, source.view(len(source), *between, -1).expand(*maps.shape[:-1], -1))


def patch_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """[..., N] over image tokens -> [..., h, w] over patches; the class token is dropped."""
    return maps[..., 1:].unflatten(-1, grid)


def mean_over_tokens(maps: Tensor, mask: Tensor) -> Tensor:
    """[B, L, ...] -> [B, ...]: the mean over real tokens, [CLS] among them; mask [B, L], 1 on tokens and 0 on padding.

    The published code divides by the padded length instead: the same up to a positive factor for each pair, which chooses
    the same box, but does not depend on what else is in the batch.
    """
    weights = mask.to(maps.dtype) / mask.sum(1, keepdim=True)
    return torch.einsum("bl...,bl->b...", maps, weights)


def resize_heat(heat: Tensor, height: int, width: int) -> Tensor:
    """Bicubic resize of heat maps [B, h, w] to a picture's size [B, height, width]; values may fall below zero."""
    return F.interpolate(heat[:, None].float(), size=(height, width), mode="bicubic")[:, 0]
