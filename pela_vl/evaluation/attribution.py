"""Where a model looks: Grad-CAM heat maps of ITM or ITC scores, for any number of heads and any grid.

All before the chosen layer runs without gradients, and gradients are taken with respect to the attention map alone. Where the
image encoder merges tokens, their heat goes back to the patches that they are made of (`hand_back`).

Shapes: B pairs, I images, S pixels a side, L text tokens, N image tokens, h x w the grid of patches, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pela_vl.base.errors import UserError
from pela_vl.metrics.gradcam import gradcam, hand_back, mean_over_tokens, patch_grid
from pela_vl.models.albef.albef import Albef
from pela_vl.models.albef.attention import KeyValue, select_images
from pela_vl.models.albef.attention_maps import Trace, tokens_before_block, trace_class_token, trace_matching
from pela_vl.models.token_merging import Merged

Autocast = Callable[[], Any]
THIRD_FUSION_LAYER = 2  # counted from 0: text layer 8 of the published ALBEF


@dataclass
class Images:
    """Images that are encoded as far as heat maps of several texts can share it.

    Args:
        states: For the ITC score, what the chosen ViT block reads of I images; None for ITM.
        keys_values: For the ITM score, the images' keys and values for every fusion layer; None for ITC.
        source: For the ITM score, `source` [I, N] of the images' `TokenStates`; None where nothing was merged.
    """

    states: Merged | None
    keys_values: list[KeyValue] | None
    source: Tensor | None = None


def choose_layer(model: Albef, score: str, layer: int | None) -> int:
    """The number of the layer whose attention is looked at.

    Args:
        model: An ALBEF.
        score: "itm" looks at a text layer, counted from the first text-only one. "itc" looks at a block of the image encoder.
        layer: The number; None for the published one: the third fusion layer (8 in ALBEF; the last where there are fewer), or
            the last block.

    Raises:
        UserError: If there is no such layer.
    """
    if score == "itm":
        first, end, what = model.text_encoder.fusion_layer, len(model.text_encoder.encoder.layer), "fusion layers"
        default = min(first + THIRD_FUSION_LAYER, end - 1)
    else:
        first, end, what = 0, len(model.visual_encoder.blocks), "blocks of the image encoder"
        default = end - 1
    layer = default if layer is None else layer
    if not first <= layer < end:
        raise UserError(f"layer {layer}: for the {score.upper()} score the {what} are {first} to {end - 1}")
    return layer


@torch.no_grad()
def prepare_images(model: Albef, images: Tensor, score: str, layer: int, autocast: Autocast) -> Images:
    """Compute what is needed once for an image, however many texts there are for it.

    Args:
        model: An ALBEF in eval mode.
        images: [I, 3, S, S].
        score: "itm" or "itc".
        layer: Of `choose_layer`.
        autocast: Gives the context that forward passes run in.
    """
    with autocast():
        if score == "itc":
            return Images(tokens_before_block(model.visual_encoder, images, layer), None)
        image = model.visual_encoder(images)
        return Images(None, model.text_encoder.image_keys_values(image.tokens), image.source)


def heat_maps(
    model: Albef, images: Images, index: Tensor, ids: Tensor, mask: Tensor, layer: int, autocast: Autocast
) -> Tensor:
    """Heat [B, h, w] of texts in images, for either score. The model should be in eval mode.

    Args:
        model: An ALBEF.
        images: Of `prepare_images`, which also decides for which score.
        index: Image of each text, int64 [B].
        ids: Texts [B, L].
        mask: Their real tokens [B, L], 1 or 0.
        layer: The one that the images were prepared for.
        autocast: Gives the context that forward passes run in.
    """
    if images.states is None:
        maps, _ = token_heat_maps(model, images, index, ids, mask, layer, autocast)
        return mean_over_tokens(maps, mask)
    encoder = model.visual_encoder
    state = images.states.select(index)
    with torch.no_grad(), autocast():
        trace = trace_class_token(encoder, state, layer)
        text = model.text_feature(model.text_encoder.encode(ids, mask).tokens)

    def similarity(tokens: Tensor) -> Tensor:
        return (model.image_feature(tokens).float() * text.float()).sum(1) / model.temp.detach()

    cam, _ = _gradcam(trace, similarity, autocast)
    return patch_grid(hand_back(cam, state.source, state.size), encoder.patch_embed.grid_size)


def token_heat_maps(
    model: Albef, images: Images, index: Tensor, ids: Tensor, mask: Tensor, layer: int, autocast: Autocast
) -> tuple[Tensor, Tensor]:
    """Heat of every text token [B, L, h, w], zero on padding, and the matching logits [B, 2]; for the ITM score.

    Args:
        model: An ALBEF in eval mode.
        images: Of `prepare_images` for the ITM score.
        index: Image of each text, int64 [B].
        ids: Texts [B, L].
        mask: Their real tokens [B, L], 1 or 0.
        layer: Text layer, counted from the first text-only one.
        autocast: Gives the context that forward passes run in.

    Raises:
        ValueError: For images that were prepared for the ITC score.
    """
    if images.keys_values is None:
        raise ValueError("the heat of single tokens is that of the ITM score; prepare the images for it")
    with torch.no_grad(), autocast():
        tokens = model.text_encoder.encode(ids, mask).tokens
        trace = trace_matching(model, tokens, mask, select_images(images.keys_values, index), layer)
    cam, logits = _gradcam(trace, lambda logits: logits[:, 1].float(), autocast)
    source = None if images.source is None else images.source[index]
    maps = patch_grid(hand_back(cam, source), model.visual_encoder.patch_embed.grid_size)
    return maps * mask[:, :, None, None], logits


def _gradcam(trace: Trace, score: Callable[[Tensor], Tensor], autocast: Autocast) -> tuple[Tensor, Tensor]:
    """The maps [B, ...], in fp32, and what the trace ends in. The scores of a batch are summed: no pair sees another."""
    attention, continue_from = trace
    attention = attention.detach().requires_grad_()
    with torch.enable_grad():
        with autocast():
            output = continue_from(attention)
            total = score(output).sum()
        (gradient,) = torch.autograd.grad(total, attention)
    return gradcam(attention.detach().float(), gradient.float()), output.detach()
