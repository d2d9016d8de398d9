"""The image encoder: timm's ViT with its hidden states kept.

Shapes: B images, S pixels a side, N = 1 + (S / patch)^2 tokens, D width.
"""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pela_vl.models.outputs import TokenStates


class ImageEncoder(VisionTransformer):
    """timm's VisionTransformer without head or pooling; parameter names are timm's, which are ALBEF's too."""

    activation_checkpointing = False
    images_at_a_time = 0
    """In eval mode at most so many images go through the blocks together, 0 for all: see inference.py."""

    def forward(self, images: Tensor, keep_hidden: bool = False) -> TokenStates:
        """images [B, 3, S, S] -> tokens [B, N, D] after the final norm; hidden: embeddings and every block's output."""
        if self.images_at_a_time and not self.training and not keep_hidden and images.shape[0] > self.images_at_a_time:
            return TokenStates(torch.cat([self(part).tokens for part in images.split(self.images_at_a_time)]))
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(images))))
        hidden = [x]
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if keep_hidden:
                hidden.append(x)
        return TokenStates(self.norm(x), tuple(hidden) if keep_hidden else ())


def build_image_encoder(
    image_size: int, patch_size: int, dim: int, depth: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0
) -> ImageEncoder:
    """ViT of ALBEF's kind: learnt positions with one for the class token, pre-norm blocks, LayerNorm eps 1e-6."""
    return ImageEncoder(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
        num_classes=0,
        global_pool="",
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
