"""The wrapper around timm's ViTs and Swin Transformers, against timm itself."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from vision_files import SWIN, VIT

from pela_vl.base.errors import UserError
from pela_vl.cost import count_parameters
from pela_vl.lowrank import compress
from pela_vl.models.vision import VisionConfig, build_vision

SMALL = {
    "deit": VisionConfig("deit_tiny_patch16_224", 5, 32, patch_size=8, width=24, depths=(3,), heads=(2,)),
    "deit3": VisionConfig("deit3_small_patch16_224", 5, 32, patch_size=8, width=24, depths=(3,), heads=(2,)),
    "avg": VisionConfig("vit_medium_patch16_gap_240", 5, 32, patch_size=8, width=24, depths=(3,), heads=(2,)),
    "swin": VisionConfig(
        "swin_tiny_patch4_window7_224", 5, 32, patch_size=2, width=8, depths=(2, 2, 1), heads=(1, 2, 4), window=4
    ),
}


def build(name, **changes):
    torch.manual_seed(0)
    return build_vision(VisionConfig(**(SMALL[name].as_dict() | changes))).eval()


def images(height=32, width=32, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_blocks_are_timms(name):
    model = build(name)
    out = model(images(), keep_hidden=True)
    torch.testing.assert_close(out.logits, model.backbone(images()))
    features = model.backbone.forward_features(images())
    torch.testing.assert_close(out.pooled, model.backbone.forward_head(features, pre_logits=True))
    # timm's own outputs of blocks are gathered by hooks here, an independent way
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, given, x: seen.append(x.flatten(1, -2)))
    model.backbone(images())
    assert len(out.hidden) == len(seen) == sum(model.config.depths)
    for ours, theirs in zip(out.hidden, seen, strict=True):
        torch.testing.assert_close(ours, theirs)
    if name in ("deit", "deit3"):
        torch.testing.assert_close(out.feature, out.hidden[-1][:, 0])
    assert not model(images()).hidden


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (41, 27), (96, 64)])
def test_maps_at_any_size_are_those_of_the_padded_image(name, size):
    model = build(name)
    maps = model.maps(images(*size))
    patch = model.config.patch_size
    first = [-(-pixels // patch) for pixels in size]
    assert list(maps[0].shape[2:]) == first
    padded = torch.zeros(2, 3, first[0] * patch, first[1] * patch)
    padded[:, :, : size[0], : size[1]] = images(*size)
    _, theirs = model.backbone.forward_intermediates(padded)
    for ours, other in zip(maps, theirs, strict=True):
        torch.testing.assert_close(ours, other)
    assert len(model.maps(images(*size), [1, 2])) == 2
    torch.testing.assert_close(model.maps(images(*size), [2])[0], maps[2])


@pytest.mark.parametrize("name", ["deit", "deit3", "avg"])
def test_merging_keeps_every_place_and_changes_little_of_alike_tokens(name):
    model = build(name)
    model.set_token_merging(4)
    out = model(images(), keep_hidden=True)
    assert all(x.shape[1] == model.backbone.pos_embed.shape[1] + model.backbone.no_embed_class for x in out.hidden)
    # a merged token counts in a mean as often as tokens were merged into it
    last = model.backbone.norm(out.hidden[-1])
    torch.testing.assert_close(out.pooled, model.backbone.forward_head(last, pre_logits=True))
    # equal patches at equal positions are equal tokens: merging them is exact
    flat = images()[:, :, :1, :1].expand(-1, -1, 32, 32)
    with torch.no_grad():
        model.backbone.pos_embed.zero_()
    merged = model(flat).logits
    model.set_token_merging(0)
    torch.testing.assert_close(merged, model(flat).logits, rtol=1e-4, atol=1e-5)


def test_merging_is_refused_for_swin_and_by_wrong_lists():
    with pytest.raises(UserError, match="plain ViTs alone"):
        build("swin", token_merging=2)
    with pytest.raises(UserError, match="plain ViTs alone"):
        build("deit", backbone="vit_base_patch16_rpn_224", token_merging=2)
    with pytest.raises(UserError, match="3 of them"):
        build("deit", token_merging=[1, 2])


@pytest.mark.parametrize("name", ["deit", "swin"])
def test_checkpointing_changes_no_gradient_with_drop_path(name):
    gradients = []
    for checkpointing in (False, True):
        model = build(name, drop_path=0.3).train()
        model.activation_checkpointing = checkpointing
        torch.manual_seed(7)
        out = model(images(), keep_hidden=True)
        (out.logits.square().sum() + sum(x.square().mean() for x in out.hidden)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_drop_path_is_off_in_evaluation_and_follows_its_rule():
    rates = {
        rule: [
            getattr(b.drop_path1, "drop_prob", 0.0) for b in build("deit", drop_path=0.4, drop_path_rule=rule).blocks
        ]
        for rule in ("linear", "constant")
    }
    assert rates["linear"] == pytest.approx([0, 0.2, 0.4]) and rates["constant"] == pytest.approx([0.4] * 3)
    model = build("deit", drop_path=0.9, drop_path_rule="constant")
    torch.testing.assert_close(model(images()).logits, build("deit")(images()).logits)


def test_a_part_of_the_patches_is_seen_in_training_alone():
    model = build("deit").train()
    model.keep_share = 0.5
    out = model(images(), keep_hidden=True)
    assert out.kept.shape == (2, 9) and out.hidden[0].shape[1] == 9 and bool((out.kept[:, 0] == 0).all())
    assert model.eval()(images()).kept is None


@pytest.mark.parametrize(
    ("name", "kappa", "more", "dense", "small", "layers"),
    [
        ("deit_base_patch16_224", 2, (), 86_567_656, 44_081_896, 48),
        ("deit3_large_patch16_224", 2, (), 304_374_760, 153_232_360, 96),
        ("swin_base_patch4_window7_224", 1.5, ("*.attn.proj",), 87_768_224, 62_164_128, 72),
    ],
)
def test_the_six_counts_of_table_1(name, kappa, more, dense, small, layers):
    with torch.device("meta"):
        model = build_vision(VisionConfig(name))
    assert count_parameters(model) == dense
    compress(model, kappa, exclude=(*model.HEADS, *more), init="empty")
    assert count_parameters(model) == small
    assert sum(key.endswith("down.weight") for key in model.state_dict()) == layers


def test_the_config_survives_json():
    for config in SMALL.values():
        assert VisionConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(UserError, match="no setting heads_"):
        VisionConfig.from_dict({"heads_": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "no_such_net"}, "no model 'no_such_net'"),
        ({"backbone": "resnet18"}, "resnet18"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"drop_path_rule": "square"}, "linear, constant"),
    ],
)
def test_what_cannot_be_built_is_said(changes, message):
    with pytest.raises(UserError, match=message):
        build_vision(VisionConfig(**changes))


SWIN_TINY = {"backbone": "swin_tiny_patch4_window7_224"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (SWIN_TINY | {"depths": (2, 2, 2, 2, 2)}, "cannot be built with .*index out of range"),
        (SWIN_TINY | {"depths": (2, 2, 2, 2), "heads": (3, 6)}, "cannot be built with .*index out of range"),
        (SWIN_TINY | {"depths": (2, 2), "heads": (3, 6, 12)}, r"heads \[3, 6, 12\]: .* is built with \[3, 6\]"),
        (SWIN_TINY | {"heads": (3, 6, 12, 24, 48)}, r"is built with \[3, 6, 12, 24\]; .* one a stage"),
        (SWIN_TINY | {"width": 2**62}, "cannot be built with .*overflow"),  # a RuntimeError of torch
        ({"depths": (2, 5)}, r"depths \[2, 5\]: deit_base_patch16_224 is built with \[2\]; give one number for a ViT"),
        ({"heads": (3, 3)}, r"heads \[3, 3\]: .* give one number for a ViT"),
        ({"depths": (0,)}, r"depths \[0\]: want 1 at least"),
        ({"heads": (-3,)}, r"heads \[-3\]: want 1 at least"),
        ({"patch_size": -4}, "patch_size -4: want 1 at least"),
        ({"width": -24}, "width -24: want 1 at least"),
        ({"window": 7}, "window 7: is for a Swin Transformer"),
    ],
)
def test_sizes_that_the_model_cannot_have_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught, torch.device("meta"):
        build_vision(VisionConfig(**changes))
    assert "\n" not in str(caught.value)


def test_blocks_and_heads_of_a_swin_are_set_each_alone():
    with torch.device("meta"):
        heads = build_vision(VisionConfig(**SWIN_TINY, heads=(4, 8, 16, 32)))
        depths = build_vision(VisionConfig(**SWIN_TINY, depths=(1, 2, 2, 1)))
    assert [stage.blocks[0].attn.num_heads for stage in heads.stages] == [4, 8, 16, 32] and heads.depths == [2, 2, 6, 2]
    assert [stage.blocks[0].attn.num_heads for stage in depths.stages] == [3, 6, 12, 24]
    assert depths.depths == [1, 2, 2, 1]


def test_the_names_are_timms():
    model = build("swin")
    twin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=5,
        img_size=32,
        patch_size=2,
        embed_dim=8,
        depths=(2, 2, 1),
        num_heads=(1, 2, 4),
        window_size=4,
    ).eval()
    twin.load_state_dict(model.backbone.state_dict())
    torch.testing.assert_close(twin(images()), model(images()).logits)


def traced_scores(model, images, number):
    """The scores that softmax reads in a block (mask of shifted windows included), by timm's own unfused attention."""
    attention, found = model.blocks[number].attn, []
    attention.fused_attn = False
    if model.is_swin:
        attention.softmax.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    else:
        attention.attn_drop.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    output = model(images, keep_hidden=True)
    return found[0], (output.embedded, *output.hidden)


@pytest.mark.parametrize("number", [0, 1])
def test_attention_scores_of_a_vit_are_those_of_its_blocks(number):
    model = build_vision(VIT).eval()
    probabilities, states = traced_scores(model, torch.randn(2, 3, 48, 48), number)
    scores = model.attention_scores("blocks", number, states[number])
    torch.testing.assert_close(scores.softmax(-1), probabilities)


@pytest.mark.parametrize("number", range(6))
def test_attention_scores_of_a_swin_are_those_of_its_windows(number):
    model = build_vision(SWIN).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_position_bias" in name:
                parameter.normal_()
    given, states = traced_scores(model, torch.randn(2, 3, 64, 64), number)
    scores = model.attention_scores("blocks", number, states[number])
    seen = given > -50  # what the mask of a shifted window hides is 100 lower
    assert any(model.blocks[number].shift_size) == (not seen.all())
    torch.testing.assert_close(scores[seen], given[seen])


@pytest.mark.parametrize(("config", "counts"), [(VIT, [1]), (SWIN, [1, 2, 1]), (SWIN, [2, 1, 2])])
def test_fewer_blocks_are_what_a_model_built_with_so_few_computes(config, counts):
    config = replace(config, depths=tuple(3 for _ in config.depths))
    model = build_vision(config).eval()
    model.keep_layers(counts)
    again = build_vision(model.config).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, config.image_size, config.image_size)
    assert model.depths == counts and torch.equal(model(images).logits, again(images).logits)
    assert [model.attention_scores("blocks", 0, model(images, True).embedded).shape[1]] == [config.heads[0]]
    with pytest.raises(ValueError):
        model.keep_layers([9] * len(counts))
