"""The image encoder against timm's plain ViT with the same weights."""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_albef import randomise
from torch import nn

from pela_vl.models.vit import build_image_encoder


def test_image_encoder_is_timms_vit():
    torch.manual_seed(0)
    ours = randomise(build_image_encoder(32, 8, 24, 3, 2))
    theirs = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=2,
        num_classes=0,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    states = ours.eval()(images, keep_hidden=True)
    seen = []
    for block in theirs.blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens = theirs.forward_features(images)
    torch.testing.assert_close(states.tokens, tokens)
    assert states.tokens.shape == (2, 17, 24)
    for own, other in zip(states.hidden, [seen[0], *seen[1::2]], strict=True):
        torch.testing.assert_close(own, other)


def test_hidden_states_are_kept_only_when_asked_for():
    ours = build_image_encoder(16, 8, 24, 1, 2)
    assert ours(torch.zeros(1, 3, 16, 16)).hidden == ()


def test_drop_path_makes_training_random():
    torch.manual_seed(0)
    ours = build_image_encoder(16, 8, 24, 6, 2, drop_path=0.5)
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(ours.train()(images).tokens, ours(images).tokens)
    assert torch.equal(ours.eval()(images).tokens, ours(images).tokens)
