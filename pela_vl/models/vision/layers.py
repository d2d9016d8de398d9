"""What training asks of a vision model's layers: which parameters are decayed, how deep each layer is, and attention scores.

`VisionModel` has methods of the same names that call these functions. Shapes: B images, N tokens (places of a Swin stage), D
width, H heads, W windows of a Swin layer, n tokens of a window.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.models.swin_transformer import window_partition
from torch import Tensor

from pela_vl.base.errors import UserError
from pela_vl.models.depth import keep_blocks, layer_map

if TYPE_CHECKING:
    from pela_vl.models.vision.backbone import VisionModel

PREFIX = "backbone."


def undecayed(model: "VisionModel") -> set[str]:
    """Names of the parameters that timm's recipes do not decay: biases, 1-d weights, and the backbone's list, which is
    positions and class token of a ViT and the relative positions of Swin."""
    listed = {PREFIX + name for name in model.backbone.no_weight_decay()}
    return {n for n, p in model.named_parameters() if p.ndim <= 1 or n.endswith(".bias") or n in listed}


def layer_scales(model: "VisionModel", layer_decay: float) -> dict[str, float]:
    """Factor on the learning rate of every parameter by name: `layer_decay` to the number of layers above its own.

    The layers are timm's: the embeddings, each block (in Swin with the downsample before it), and the final norm with the
    head, whose factor is 1. Raises UserError unless 0 < layer_decay <= 1.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"optim.layer_decay {layer_decay}: want a factor above 0, 1 for equal rates")
    groups = group_parameters(model.backbone, model.backbone.group_matcher(coarse=False), reverse=True)
    last = max(groups.values())
    return {
        name: layer_decay ** (last - groups.get(name.removeprefix(PREFIX), last))
        for name, _ in model.named_parameters()
    }


def keep_stage_blocks(stages: list[Any], counts: list[int]) -> None:
    """Keep so many blocks of every stage, evenly spread, in place.

    Whether a Swin block shifts its windows depends on its place in the stage, as in a model built with so few blocks.
    Raises ValueError for more blocks than there are.
    """
    for stage, count in zip(stages, counts, strict=True):
        before = list(stage.blocks)
        # read before they are written: a kept block may be one of these two
        shifts = [(b.shift_size, b.target_shift_size, b.attn_mask) for b in before[:2] if hasattr(b, "shift_size")]
        stage.blocks = keep_blocks(stage.blocks, count)
        for place, block in enumerate(stage.blocks if shifts else ()):
            block.shift_size, block.target_shift_size, block.attn_mask = shifts[place % 2]


def followed_layers(deep: list[int], shallow: list[int]) -> list[int]:
    """The deep model's block that each of the shallow model's blocks follows, counted through all stages.

    Args:
        deep: Blocks of each stage of the deep model.
        shallow: Blocks of each stage of the shallow model.

    Raises:
        ValueError: Where the shallow model has more blocks, or another number of stages.
    """
    found, start = [], 0
    for many, few in zip(deep, shallow, strict=True):
        found += [start + place for place in layer_map(many, few)]
        start += many
    return found


def vit_scores(block: Any, x: Tensor) -> Tensor:
    """Scores [B, H, N, N] of a ViT block's attention before softmax, from its input [B, N, D]."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


def swin_scores(block: Any, x: Tensor) -> Tensor:
    """Scores [B * W, H, n, n] of a Swin block's windows, from its input x [B, h, w, D].

    Relative positions are included; mask and softmax are not.
    """
    x, window, attention = block.norm1(x), block.window_size, block.attn
    if any(block.shift_size):
        x = torch.roll(x, shifts=tuple(-s for s in block.shift_size), dims=(1, 2))
    x = F.pad(x, (0, 0, 0, -x.shape[2] % window[1], 0, -x.shape[1] % window[0]))
    windows = window_partition(x, window).flatten(1, 2)
    query, key = attention.qkv(windows).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)[:2]
    return query @ key.transpose(-1, -2) * attention.scale + attention._get_rel_pos_bias()


def square(x: Tensor) -> Tensor:
    """[B, N, D] of a square image as [B, h, h, D]."""
    height = int(x.shape[1] ** 0.5)
    return x.unflatten(1, (height, height))
