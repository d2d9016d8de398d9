"""The published way of computing, restated literally over our modules' weights: the baselines of the benchmarks.

Shapes: B texts, L text tokens, N image tokens, D width, H heads. Attention is written out (scores, additive mask, softmax,
weighted sum), keys and values are computed anew for every text, and every layer is computed for every token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pela_vl.models.albef import Albef
from pela_vl.models.bert import Attention, Layer


def attention(module: Attention, x: Tensor, context: Tensor, additive: Tensor) -> Tensor:
    """x [B, L, D], context [B, N, C], additive mask broadcastable to [B, H, L, N] -> [B, L, D]."""
    own = module.projections
    query, key, value = own.split(own.query(x)), own.split(own.key(context)), own.split(own.value(context))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + additive
    weights = F.dropout(scores.softmax(-1), module.attention_dropout, module.training)
    mixed = (weights @ value).permute(0, 2, 1, 3).contiguous().flatten(2)
    return module.output(mixed, x)


def layer(module: Layer, x: Tensor, additive: Tensor, image: Tensor | None) -> Tensor:
    x = attention(module.attention, x, x, additive)
    if image is not None:
        x = attention(module.crossattention, x, image, x.new_zeros(len(x), 1, 1, image.shape[1]))
    return module.output(module.intermediate(x), x)


def text_states(model: Albef, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Embeddings and every text-only layer's output, each [B, L, D]."""
    bert, states = model.text_encoder, [model.text_encoder.embeddings(ids)]
    for module in bert.encoder.layer[: bert.fusion_layer]:
        states.append(layer(module, states[-1], _additive(mask), None))
    return states


def fusion_states(model: Albef, tokens: Tensor, mask: Tensor, image: Tensor) -> list[Tensor]:
    """Every fusion layer's output [B, L, D] of encoded texts with image tokens [B, N, C], one image a text."""
    bert, states = model.text_encoder, [tokens]
    for module in bert.encoder.layer[bert.fusion_layer :]:
        states.append(layer(module, states[-1], _additive(mask), image))
    return states[1:]


def vit_states(model: Albef, images: Tensor) -> list[Tensor]:
    """Embeddings, every block's output and, last, the normed output, each [B, N, D]; attention written out."""
    vit = model.visual_encoder
    states = [vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))]
    for block in vit.blocks:
        x, own = states[-1], block.attn
        query, key, value = own.qkv(block.norm1(x)).unflatten(-1, (3, own.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * own.scale).softmax(-1)
        x = x + own.proj((weights @ value).transpose(1, 2).flatten(2))
        states.append(x + block.mlp(block.norm2(x)))
    return [*states, vit.norm(states[-1])]


def matching_scores(model: Albef, tokens: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """ITM logits (index 1) [B] of encoded texts [B, L, D], each with its own copy of image tokens [B, N, C]."""
    return model.itm_head(fusion_states(model, tokens, mask, image)[-1][:, 0])[:, 1]


@torch.no_grad()
def rerank_image(model: Albef, tokens: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """One turn of the published image-to-text loop: image tokens [N, C] repeated for its texts [B, L, D]. Scores [B]."""
    return matching_scores(model, tokens, mask, image.repeat(len(tokens), 1, 1))


def _additive(mask: Tensor) -> Tensor:
    return (1.0 - mask[:, None, None, :].float()) * -10000.0
