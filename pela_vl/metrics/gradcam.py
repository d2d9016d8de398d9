"""Grad-CAM on attention maps, as in ALBEF's weakly supervised grounding.

Shapes: B pairs, H heads, L text tokens, N = 1 + h * w image tokens (class token first), h x w the grid of patches, M <=
N the tokens that are left where the image encoder merges similar ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gradcam(attention: Tensor, gradient: Tensor) -> Tensor:
    """Attention times its gradient where that is positive, mean over the heads: [B, H, ...] twice -> [B, ...]."""
    return (attention * gradient.clamp(min=0)).mean(1)


def hand_back(maps: Tensor, source: Tensor | None, size: Tensor | None = None) -> Tensor:
    """Spread heat maps over merged tokens back to the original places.

    Under proportional attention a merged token counts as often as places were merged into it. Its attention is the sum of
    that of its places, so each place gets an equal part. Without proportional attention a merged token counts once. Its
    attention is what each of its places would have alone, so each place gets all of it. The gradient of the score is equal at
    all places of a token, so the product of attention and gradient may be spread instead of both.

    Args:
        maps: Heat over merged tokens [B, ..., M].
        source: The merged token that each place is part of [B, N]; None if nothing was merged.
        size: Places of each merged token [B, M], where attention was proportional; else None.

    Returns:
        Heat over the original places [B, ..., N].
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
    """Bicubic resize of heat maps to an image's size; values may fall below zero.

    Args:
        heat: [B, h, w].
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        float32 [B, height, width].
    """
    return F.interpolate(heat[:, None].float(), size=(height, width), mode="bicubic")[:, 0]
