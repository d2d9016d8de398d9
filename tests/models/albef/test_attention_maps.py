"""The path with maps against the ordinary forward."""

import pytest
import torch
from tiny_albef import tiny_albef, tiny_batch

from pela_vl.models.albef.attention_maps import tokens_before_block, trace_class_token, trace_matching

SHAPES = [
    {},
    {"vision_heads": 3, "text_heads": 4, "image_size": 48, "patch_size": 8, "text_depth": 6, "vision_depth": 3},
    {"image_size": 48, "patch_size": 8, "vision_depth": 4, "token_merging": [0, 5, 0, 3]},
]


def parts(low_rank, changes):
    model = tiny_albef(low_rank=low_rank, **changes).eval()
    batch = tiny_batch(4)
    size = model.visual_encoder.patch_embed.img_size[0]
    return model, batch, torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_matching_through_the_map_is_the_ordinary_matching(low_rank, changes):
    model, batch, images = parts(low_rank, changes)
    text = model.text_encoder.encode(batch.ids, batch.mask).tokens
    image = model.text_encoder.image_keys_values(model.visual_encoder(images).tokens)
    for layer in range(model.text_encoder.fusion_layer, len(model.text_encoder.encoder.layer)):
        probabilities, finish = trace_matching(model, text, batch.mask, image, layer)
        torch.testing.assert_close(finish(probabilities), model.match(text, batch.mask, image))
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    with pytest.raises(ValueError, match="no fusion layer"):
        trace_matching(model, text, batch.mask, image, model.text_encoder.fusion_layer - 1)


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_the_image_through_the_map_is_the_ordinary_image(low_rank, changes):
    model, _, images = parts(low_rank, changes)
    for block in range(len(model.visual_encoder.blocks)):
        x = tokens_before_block(model.visual_encoder, images, block)
        row, finish = trace_class_token(model.visual_encoder, x, block)
        torch.testing.assert_close(finish(row), model.visual_encoder(images).tokens)
        torch.testing.assert_close(row.sum(-1), torch.ones(row.shape[:-1]))
    with pytest.raises(ValueError, match="no block"):
        tokens_before_block(model.visual_encoder, images, block + 1)
