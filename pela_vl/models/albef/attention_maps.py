"""Attention maps of one chosen layer, computed beside the ordinary forward pass, which never forms them.

A trace is a pair: the map, and a function that continues from such a map to the model's output. For gradients with respect to
the map, make it a leaf before calling the function. The results equal those of the ordinary forward pass.

Shapes: B pairs, H heads, L text tokens, N image tokens (class token first; fewer where the ViT has merged some), D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.attention import Attention, KeyValue
from pela_vl.models.token_merging import Merged, after_attention, size_bias
from pela_vl.models.vit import ImageEncoder

Trace = tuple[Tensor, Callable[[Tensor], Tensor]]


def attention_map(attention: Attention, x: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention probabilities [B, H, L, N] of one attention.

    Args:
        attention: The attention of a text layer.
        x: Its input [B, L, D], which the queries are made of.
        keys: [B or 1, H, N, D / H].
        mask: Bool, broadcastable to [B, 1, L, N], True = attend; None attends to all.
    """
    query = attention.projections.split(attention.projections.query(x))
    scores = query @ keys.transpose(-2, -1) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.float().softmax(-1).to(scores.dtype)


def attend_by_map(attention: Attention, probabilities: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """The rest of `Attention.forward`, from the probabilities on: [B, L, D].

    Args:
        attention: The attention of a text layer.
        probabilities: [B, H, L, N].
        values: [B or 1, H, N, D / H].
        x: Residual [B, L, D].
    """
    return attention.output((probabilities @ values).transpose(1, 2).flatten(2), x)


def trace_matching(model: Albef, tokens: Tensor, mask: Tensor, image: Sequence[KeyValue], layer: int) -> Trace:
    """Cross-attention [B, H, L, N] of one fusion layer, and the function from there to the matching logits [B, 2].

    Args:
        model: An ALBEF.
        tokens: Encoded texts [B, L, D].
        mask: Their real tokens [B, L], 1 or 0.
        image: The images' keys and values for every fusion layer.
        layer: Text layer, counted from the first text-only one, as checkpoints do.

    Raises:
        ValueError: For a layer that is no fusion layer.
    """
    encoder = model.text_encoder
    first, layers = encoder.fusion_layer, encoder.layers
    if not first <= layer < len(layers):
        raise ValueError(f"text layer {layer} is no fusion layer; those are {first} to {len(layers) - 1}")
    attend = mask[:, None, None, :].bool()
    x = tokens
    for before, context in zip(layers[first:layer], image, strict=False):
        x = before(x, attend, context)
    chosen, (keys, values) = layers[layer], image[layer - first]
    cross = encoder.fusion_attentions[layer - first]
    x = chosen.attention(x, chosen.attention.projections.keys_values(x), attend)

    def continue_from(probabilities: Tensor) -> Tensor:
        y = attend_by_map(cross, probabilities, values, x)
        y = chosen.output(chosen.intermediate(y), y)
        for after, context in zip(layers[layer + 1 :], image[layer - first + 1 :], strict=True):
            y = after(y, attend, context)
        return model.itm_head(y[:, 0])

    return attention_map(cross, x, keys), continue_from


def tokens_before_block(encoder: ImageEncoder, images: Tensor, block: int) -> Merged:
    """The input of one of the ViT's blocks.

    Args:
        encoder: The ViT.
        images: [B, 3, S, S].
        block: Number of the block, from 0.

    Raises:
        ValueError: For a block that the ViT does not have.
    """
    if not 0 <= block < len(encoder.blocks):
        raise ValueError(f"the image encoder has no block {block}; those are 0 to {len(encoder.blocks) - 1}")
    state = Merged(encoder.embed(images))
    for number in range(block):
        state = encoder.run_block(number, state)
    return state


def trace_class_token(encoder: ImageEncoder, state: Merged, block: int) -> Trace:
    """The class token's attention [B, H, N] in one of the ViT's blocks, and the function from there to the final tokens [B, N, D].

    The other tokens need no map; their attention is computed the ordinary way.

    Args:
        encoder: The ViT.
        state: The block's input, see `tokens_before_block`.
        block: Number of the block, from 0.
    """
    chosen: Any = encoder.blocks[block]  # timm's Block
    x = state.x
    attention = chosen.attn
    qkv = attention.qkv(chosen.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, keys, values = qkv.unbind(0)
    bias = size_bias(state.size, query.dtype)
    scores = query[:, :, :1] @ keys.transpose(-2, -1) * query.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    row = scores[:, :, 0].float().softmax(-1).to(scores.dtype)

    def continue_from(probabilities: Tensor) -> Tensor:
        class_token = probabilities[:, :, None] @ values
        others = F.scaled_dot_product_attention(query[:, :, 1:], keys, values, attn_mask=bias)
        mixed = torch.cat([class_token, others], dim=2).transpose(1, 2).flatten(2)
        y, reduction = x + attention.proj(mixed), encoder.reduction(block)
        after = state.then(*after_attention(chosen, y, keys.mean(1), state.size, reduction, encoder.num_prefix_tokens))
        for number in range(block + 1, len(encoder.blocks)):
            after = encoder.run_block(number, after)
        return encoder.norm(after.x)

    return row, continue_from
