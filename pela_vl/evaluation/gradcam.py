"""Grad-CAM on attention maps, as ALBEF's weakly supervised grounding does it: tensors in, tensors out.

Shapes: B pairs, H heads, L text tokens, N = 1 + h * w image tokens (class token first), h x w the grid of patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gradcam(attention: Tensor, gradient: Tensor) -> Tensor:
    """Attention times its gradient where that is positive, mean over the heads: [B, H, ...] twice -> [B, ...]."""
    return (attention * gradient.clamp(min=0)).mean(1)


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
