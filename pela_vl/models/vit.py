"""The image encoder: timm's ViT that returns its hidden states. It can merge similar tokens and see a part of the patches.

Shapes: B images, S pixels a side, N = 1 + (S / patch)^2 tokens, M <= N tokens at the end, D width.
"""

from collections.abc import Sequence
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pela_vl.models.outputs import TokenStates
from pela_vl.models.token_merging import Merged, merging_block, reductions, unmerge_tokens


class ImageEncoder(VisionTransformer):
    """timm's VisionTransformer without head or pooling. Parameter names are timm's, which are ALBEF's too.

    Attributes:
        activation_checkpointing: Recompute every block's activations in backward.
        merging: Tokens to merge in each block (models/token_merging.py); empty for none.
        keep_share: Part of the patches that are seen in training, drawn anew for every image; the class token always stays. In
            evaluation all patches are seen.
    """

    pos_embed: nn.Parameter  # timm's is None in a ViT without learnt positions; this one always has them
    activation_checkpointing = False
    merging: tuple[int, ...] = ()
    keep_share = 1.0
    images_at_a_time = 0
    """In eval mode at most so many images go through the blocks together, 0 for all: see inference.py."""

    # timm's forward returns class logits of images; this one is an encoder and returns its states
    def forward(self, images: Tensor, keep_hidden: bool = False) -> TokenStates:  # type: ignore[override]
        """images [B, 3, S, S] -> tokens [B, M, D] after the final norm; hidden: embeddings and every block's output.

        Hidden states stand at the places of the patches seen: a merged token at every place that it is made of.
        """
        if self.images_at_a_time and not self.training and not keep_hidden and images.shape[0] > self.images_at_a_time:
            parts = [self(part) for part in images.split(self.images_at_a_time)]
            source = torch.cat([part.source for part in parts]) if parts[0].source is not None else None
            return TokenStates(torch.cat([part.tokens for part in parts]), source=source)
        x, kept = self.embed(images), None
        if self.training and self.keep_share < 1.0:
            kept = draw_kept(len(x), x.shape[1], self.keep_share, self.num_prefix_tokens, x.device)
            x = unmerge_tokens(x, kept)
        hidden, state = [x], Merged(x)
        for number in range(len(self.blocks)):
            state = self.run_block(number, state)
            if keep_hidden:
                hidden.append(state.spread())
        return TokenStates(self.norm(state.x), tuple(hidden) if keep_hidden else (), kept, state.source)

    def embed(self, images: Tensor) -> Tensor:
        """What the first block reads: [B, N, D] of images [B, 3, S, S], which are taken in the encoder's type."""
        return self.norm_pre(self._pos_embed(self.patch_embed(images.to(self.pos_embed.dtype))))

    def run_block(self, number: int, state: Merged) -> Merged:
        """Block `number` on the tokens that it is given, with its merge."""
        arguments = (self.blocks[number], state.x, state.size, self.reduction(number), self.num_prefix_tokens)
        if self.activation_checkpointing and self.training:
            return state.then(*checkpoint(merging_block, *arguments, use_reentrant=False))
        return state.then(*merging_block(*arguments))

    def reduction(self, number: int) -> int:
        """How many tokens block `number` is to merge."""
        return self.merging[number] if self.merging else 0

    def set_token_merging(self, schedule: int | Sequence[int]) -> None:
        """Merge so many tokens in every block, or in each as a list says; 0 for none. Raises ValueError (`reductions`)."""
        numbers = reductions(schedule, len(self.blocks))
        self.merging = tuple(numbers) if any(numbers) else ()


def draw_kept(batch: int, count: int, fraction: float, prefix: int, device: torch.device) -> Tensor:
    """Draw which tokens of every image are seen: the prefix, and a random part of the others.

    Args:
        batch: B, the number of images.
        count: N, tokens of an image, prefix included.
        fraction: Part of the other tokens that stays, 0 to 1; one token stays at least.
        prefix: Tokens at the front that always stay, such as the class token.
        device: Where to draw.

    Returns:
        Places [B, K] of the tokens that stay, in ascending order.
    """
    patches = max(round((count - prefix) * fraction), 1)
    chosen = torch.rand(batch, count - prefix, device=device).argsort(dim=1)[:, :patches].sort(dim=1).values
    return torch.cat([torch.arange(prefix, device=device).expand(batch, -1), chosen + prefix], dim=1)


def build_image_encoder(
    image_size: int,
    patch_size: int,
    dim: int,
    depth: int,
    heads: int,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    token_merging: int | Sequence[int] = 0,
) -> ImageEncoder:
    """A ViT of ALBEF's kind: learnt positions with one for the class token, pre-norm blocks, LayerNorm eps 1e-6.

    Args:
        image_size: Pixels a side, a multiple of `patch_size`.
        patch_size: Pixels a side.
        dim: Width, a multiple of `heads`.
        depth: Blocks.
        heads: Attention heads.
        mlp_ratio: Width inside the MLPs, in units of `dim`.
        drop_path: Rate of stochastic depth in the last block, rising linearly from 0 in the first.
        token_merging: Tokens to merge in every block, or one number for each block; 0 for none.
    """
    encoder = ImageEncoder(
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
    encoder.set_token_merging(token_merging)
    return encoder
