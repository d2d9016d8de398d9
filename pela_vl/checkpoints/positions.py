"""Positional embeddings of a ViT at another resolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_of(pos_embed: Tensor) -> int:
    """Patches a side of square positional embeddings [1, 1 + g*g, D]. Raises ValueError for any other shape."""
    patches = pos_embed.shape[1] - 1 if pos_embed.ndim == 3 and pos_embed.shape[0] == 1 else 0
    grid = math.isqrt(max(patches, 0))
    if grid < 1 or grid * grid != patches:
        raise ValueError(f"positional embeddings {list(pos_embed.shape)} are not [1, 1 + g*g, D]")
    return grid


def interpolate_pos_embed(pos_embed: Tensor, new_grid: int) -> Tensor:
    """Positional embeddings [1, 1 + g*g, D] for `new_grid` patches a side: [1, 1 + new_grid^2, D], as ALBEF does.

    Bicubic with align_corners=False. The class token's entry is kept. Where the grid is the same, the input is returned.

    Raises:
        ValueError: When the embeddings are not one class token and a square.
    """
    grid = grid_of(pos_embed)
    if new_grid < 1:
        raise ValueError(f"the grid must have at least one patch a side, not {new_grid}")
    if grid == new_grid:
        return pos_embed
    first, patches = pos_embed[:, :1], pos_embed[:, 1:]
    square = patches.transpose(1, 2).unflatten(2, (grid, grid)).float()
    square = F.interpolate(square, size=(new_grid, new_grid), mode="bicubic", align_corners=False)
    return torch.cat([first, square.flatten(2).transpose(1, 2).to(pos_embed.dtype)], dim=1)
