"""Token merging (ToMe, Bolya et al., ICLR 2023): similar tokens of an image become one, between attention and MLP.

Shapes: B images, N tokens before and M after a merge, D width, H heads, P tokens at the front that are kept as they are.
A merge is one index tensor [B, N]: where each token goes, 0 .. M - 1. The tokens that remain keep their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Merged:
    """Tokens on their way through the blocks.

    Args:
        x: The tokens [B, M, D].
        size: Number of original tokens that each is the mean of, [B, M]; None where nothing was merged so far.
        source: The token, 0 .. M - 1, that each original one is part of, [B, N]; None where nothing was merged so far.
    """

    x: Tensor
    size: Tensor | None = None
    source: Tensor | None = None

    def select(self, index: Tensor) -> "Merged":
        """The same of some images, by their indices."""
        size, source = (None if part is None else part[index] for part in (self.size, self.source))
        return Merged(self.x[index], size, source)

    def then(self, x: Tensor, size: Tensor | None, target: Tensor | None) -> "Merged":
        """The state after one more block; the arguments are what `merging_block` returns.

        Args:
            x: Tokens behind the block [B, M', D].
            size: Original tokens in each of them [B, M'], or None where nothing was merged so far.
            target: Where the block's merge put each of its input tokens, [B, M]; None where it merged nothing.
        """
        if target is None:
            return Merged(x, size, self.source)
        return Merged(x, size, target if self.source is None else target.gather(1, self.source))

    def spread(self) -> Tensor:
        """The tokens at all original places, [B, N, D]: a merged token stands at every place that it is made of."""
        return self.x if self.source is None else unmerge_tokens(self.x, self.source)


def merge_plan(metric: Tensor, reduction: int, protected: int = 1) -> Tensor:
    """Bipartite soft matching: which tokens go together.

    Tokens at even places are matched with their most similar (cosine) token at an odd place. The `reduction` best of these pairs
    become one token each; several tokens may join the same one.

    Args:
        metric: What similarity is measured on, [B, N, D].
        reduction: Tokens to take away; at most half of the unprotected ones go.
        protected: Tokens at the front that neither go nor are joined.

    Returns:
        For each token its place after the merge, [B, N] in 0 .. N - reduction - 1.
    """
    batch, count, _ = metric.shape
    reduction = _possible(reduction, count, protected)
    place = torch.arange(count, device=metric.device)
    even, odd = place[::2], place[1::2]
    metric = F.normalize(metric.float(), dim=-1)
    likeness = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)  # [B, even, odd]
    likeness = likeness.masked_fill((even < protected)[:, None] | (odd < protected), float("-inf"))
    best, partner = likeness.max(dim=2)
    leaving = best.argsort(dim=1, descending=True, stable=True)[:, :reduction]  # of the even tokens
    joined = odd[partner.gather(1, leaving)]
    leaving = even[leaving]
    stays = torch.ones(batch, count, dtype=torch.int64, device=metric.device).scatter(1, leaving, 0)
    target = stays.cumsum(1) - 1
    return target.scatter(1, leaving, target.gather(1, joined))


def merge_tokens(x: Tensor, size: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge tokens by a plan. A merged token is the mean of its parts, weighted by their sizes.

    Args:
        x: Tokens [B, N, D].
        size: Original tokens in each of them [B, N].
        target: The plan of `merge_plan` [B, N].
        count: M, the number of tokens after the merge.

    Returns:
        Tokens [B, M, D] and their sizes [B, M].
    """
    merged_size = size.new_zeros(x.shape[0], count).scatter_add(1, target, size)
    weighted = x * size[..., None].to(x.dtype)
    total = x.new_zeros(x.shape[0], count, x.shape[2]).scatter_add(1, target[..., None].expand_as(x), weighted)
    return total / merged_size[..., None].to(x.dtype), merged_size


def unmerge_tokens(x: Tensor, source: Tensor) -> Tensor:
    """x [B, M, D], source [B, N] (the token that each original one is part of now) -> [B, N, D]."""
    return x.gather(1, source[..., None].expand(-1, -1, x.shape[2]))


def proportional_attention(attention: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """timm's `Attention`, where a token counts as often as tokens were merged into it: log(size) is added to its scores.

    Args:
        attention: timm's module.
        x: Normalised tokens [B, N, D].
        size: Original tokens in each of them [B, N]; None: one in each.

    Returns:
        The output [B, N, D], and the keys' mean over the heads [B, N, D / H], on which tokens are matched.
    """
    gate = getattr(attention, "gate", None)
    mixed = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = mixed.unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    bias = size_bias(size, query.dtype)
    dropout = attention.attn_drop.p if attention.training else 0.0
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    out = attention.norm(out.transpose(1, 2).flatten(2))
    if gate is not None:
        out = out * gate(x).sigmoid()
    return attention.proj_drop(attention.proj(out)), key.mean(1)


def size_bias(size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What proportional attention adds to its scores: [B, 1, 1, N] of sizes [B, N]."""
    return None if size is None else size.log().to(dtype)[:, None, None, :]


def merging_block(
    block: Any, x: Tensor, size: Tensor | None, reduction: int, protected: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """timm's ViT `Block` with a merge of up to `reduction` tokens between its halves.

    Where nothing is merged, before or now, this is the block itself.

    Args:
        block: timm's module.
        x: Tokens [B, N, D].
        size: Original tokens in each of them [B, N]; None where nothing was merged yet.
        reduction: Tokens to merge; fewer where the unprotected tokens are too few.
        protected: Tokens at the front that are kept as they are.

    Returns:
        Tokens [B, M, D], their sizes [B, M] or None, and the plan [B, N], None where this block merged nothing.
    """
    if size is None and not _possible(reduction, x.shape[1], protected):
        return block(x), None, None
    attended, metric = proportional_attention(block.attn, block.norm1(x), size)
    return after_attention(block, x + block.drop_path1(block.ls1(attended)), metric, size, reduction, protected)


def after_attention(
    block: Any, x: Tensor, metric: Tensor, size: Tensor | None, reduction: int, protected: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The second half of `merging_block`: the merge and the MLP. It returns what that function returns.

    Args:
        block: timm's module.
        x: Tokens after attention and its residual [B, N, D].
        metric: What similarity is measured on, [B, N, D / H].
        size: Original tokens in each token [B, N], or None.
        reduction: Tokens to merge.
        protected: Tokens at the front that are kept as they are.
    """
    reduction, target = _possible(reduction, x.shape[1], protected), None
    if reduction:
        # matching is a choice and has no gradient
        target = merge_plan(metric.detach(), reduction, protected)
        size = torch.ones(x.shape[:2], device=x.device) if size is None else size
        x, size = merge_tokens(x, size, target, x.shape[1] - reduction)
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), size, target


def _possible(reduction: int, count: int, protected: int) -> int:
    return max(min(reduction, (count - protected) // 2), 0)


def check_reductions(schedule: int | Sequence[int], depth: int) -> None:
    """Check that `reductions` accepts a schedule, without making a list of `depth` numbers.

    Raises:
        ValueError: If it does not.
    """
    numbers = [schedule] if isinstance(schedule, int) else schedule
    if (not isinstance(schedule, int) and len(numbers) != depth) or min(numbers) < 0:
        raise ValueError(f"token_merging wants one number >= 0, or {depth} of them (one a block), not {schedule}")


def reductions(schedule: int | Sequence[int], depth: int) -> list[int]:
    """How many tokens to merge in each of `depth` blocks: the same in all, or one number a block.

    Raises ValueError for a list of another length and a negative number.
    """
    check_reductions(schedule, depth)
    return [schedule] * depth if isinstance(schedule, int) else list(schedule)


class MergingBlocks(nn.Sequential):
    """Takes the place of `blocks` in any timm VisionTransformer, under the same parameter names.

    Args:
        blocks: timm's blocks.
        schedule: Tokens to merge in every block, or one number for each block.
        protected: Tokens at the front that are kept as they are.
    """

    def __init__(self, blocks: nn.Sequential, schedule: int | Sequence[int], protected: int):
        super().__init__(*blocks)
        self.reductions, self.protected = reductions(schedule, len(blocks)), protected

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, M, D]"""
        size: Tensor | None = None
        for block, reduction in zip(self, self.reductions, strict=True):
            x, size, _ = merging_block(block, x, size, reduction, self.protected)
        return x
