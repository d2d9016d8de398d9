"""The published way of computing, restated literally over our modules' weights: the baselines of the benchmarks.

Shapes: B texts, L text tokens, N image tokens, D width, H heads. Attention is written out (scores, additive mask, softmax,
weighted sum), keys and values are computed anew for every text, and every layer is computed for every token.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pela_vl.data.collate import Batch
from pela_vl.lowrank import LowRankLinear
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.attention import Attention
from pela_vl.models.albef.bert import Layer
from pela_vl.models.albef.queue import FeatureQueue

Draw = Callable[[Tensor, Tensor], Tensor]


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


def pretraining_forward(
    model: Albef, twin: Albef, queue: FeatureQueue, batch: Batch, alpha: float, momentum: float, draw: Draw
):
    """One model's whole forward of the released pre-training, with its own twin. Returns losses by name, and FD's features.

    draw(similarity [B, B], forbidden) picks a negative a row.
    """
    size = len(batch.ids)
    with torch.no_grad():
        model.temp.clamp_(0.001, 0.5)
        online = dict(model.named_parameters())
        for name, parameter in twin.named_parameters():
            parameter.mul_(momentum).add_(online[name], alpha=1 - momentum)
    image, text = vit_states(model, batch.images), text_states(model, batch.ids, batch.mask)
    image_feature, text_feature = model.image_feature(image[-1]), model.text_feature(text[-1])
    with torch.no_grad():
        image_m, text_m = vit_states(twin, batch.images)[-1], text_states(twin, batch.ids, batch.mask)[-1]
        image_feature_m, text_feature_m = twin.image_feature(image_m), twin.text_feature(text_m)
        image_all = torch.cat([image_feature_m.T, queue.image], dim=1)
        text_all = torch.cat([text_feature_m.T, queue.text], dim=1)
        own = torch.zeros(size, image_all.shape[1]).fill_diagonal_(1)
        targets = [
            alpha * F.softmax(a @ b / model.temp, dim=1) + (1 - alpha) * own
            for a, b in ((image_feature_m, text_all), (text_feature_m, image_all))
        ]
    similarity = [image_feature @ text_all / model.temp, text_feature @ image_all / model.temp]
    itc = sum(-(F.log_softmax(s, dim=1) * t).sum(1).mean() for s, t in zip(similarity, targets, strict=True)) / 2
    positive = fusion_states(model, text[-1], batch.mask, image[-1])[-1]
    with torch.no_grad():
        forbidden = torch.eye(size, dtype=torch.bool)
        negative_text, negative_image = (draw(s[:, :size], forbidden) for s in similarity)
    texts = torch.cat([text[-1], text[-1][negative_text]])
    masks = torch.cat([batch.mask, batch.mask[negative_text]])
    images = torch.cat([image[-1][negative_image], image[-1]])
    negative = fusion_states(model, texts, masks, images)[-1]
    logits = model.itm_head(torch.cat([positive[:, 0], negative[:, 0]]))
    itm = F.cross_entropy(logits, torch.cat([torch.ones(size), torch.zeros(2 * size)]).long())
    masked = text_states(model, batch.masked_ids, batch.mask)
    masked += fusion_states(model, masked[-1], batch.mask, image[-1])
    with torch.no_grad():
        soft = text_states(twin, batch.masked_ids, batch.mask)[-1]
        soft = twin.mlm_logits(fusion_states(twin, soft, batch.mask, image_m)[-1]).softmax(-1)
    words = model.mlm_logits(masked[-1])  # of all tokens
    hard = F.cross_entropy(words.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
    distilled = -(F.log_softmax(words, dim=-1) * soft).sum(-1)[batch.labels != -100].mean()
    mlm = (1 - alpha) * hard + alpha * distilled
    with torch.no_grad():
        queue.push(image_feature_m, text_feature_m, batch.image_ids)
    return {"itc": itc, "itm": itm, "mlm": mlm}, [*image[:-1], *text, *masked]


def feature_distillation(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean over the features of their mean squared error."""
    return sum(F.mse_loss(own, target) for own, target in zip(student, teacher, strict=True)) / len(student)


def weight_perturbation(pairs: list[tuple[LowRankLinear, Tensor]], epsilon: float) -> Tensor:
    """Mean of (max |up @ down - W| - epsilon)^2, the dense differences kept for backward."""
    return sum(((layer.dense_weight() - w).abs().max() - epsilon).square() for layer, w in pairs) / len(pairs)
