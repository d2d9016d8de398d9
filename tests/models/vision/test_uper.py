"""UperNet: the published counts, a literal restatement of its heads, maps of images of any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pela_vl.base.errors import UserError
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.cost import count_parameters, linear_conv_flops
from pela_vl.lowrank import compress, low_rank_layers
from pela_vl.models.vision.uper import UperConfig, build_uper

VIT = UperConfig(
    "deit_tiny_patch16_224", 3, 48, width=24, depths=(6,), heads=(2,), patch_size=8, labels=7, channels=16,
    auxiliary_channels=8,
)  # fmt: skip
SWIN = UperConfig(
    "swin_tiny_patch4_window7_224", 3, 64, width=8, depths=(1, 2, 2, 1), heads=(1, 1, 2, 2), window=4, labels=7,
    channels=16, auxiliary_channels=8,
)  # fmt: skip
TABLE2 = {  # parameters dense and at kappa 2, GFLOPs of Linear and Conv layers, and those with element-wise work
    "deit_base_patch16_224": (512, (121_345_044, 78_859_284), (320.190, 203.184), (320.39, 203.38)),
    "swin_base_patch4_window7_224": (512, (121_279_716, 79_313_636), (798.010, 684.704), (798.51, 685.20)),
    "deit3_large_patch16_224": (1024, (428_385_556, 277_243_156), (1154.683, 738.436), (1155.19, 738.95)),
}


@pytest.mark.parametrize(
    "backbone", [name if "deit_base" in name else pytest.param(name, marks=pytest.mark.slow) for name in TABLE2]
)
def test_the_counts_of_table_2(backbone):
    channels, parameters, layers, profiled = TABLE2[backbone]
    for place, kappa in enumerate((None, 2)):
        with torch.device("meta"):
            model = build_uper(UperConfig(backbone, 1000, 512, channels=channels)).eval()
            if kappa:
                compress(model, kappa, exclude=dense_heads(model), init="empty")
        assert count_parameters(model) == parameters[place]
        flops = linear_conv_flops(model, lambda model: model(torch.empty(1, 3, 512, 683, device="meta")))
        assert flops.layers / 1e9 == pytest.approx(layers[place], rel=1e-4)
        assert flops.profiled / 1e9 == pytest.approx(profiled[place], rel=1e-4)


def shaken(config):
    """A model whose norms and running statistics are not those of the start."""
    torch.manual_seed(0)
    model = build_uper(config)
    with torch.no_grad():
        for value in [*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith(("_mean", "_var")))]:
            value.add_(0.1 * torch.rand_like(value))
    return model


def conv_module(x, state, name, padding=0):
    """Convolution, batch normalisation by running statistics, ReLU."""
    x = F.conv2d(x, state[f"{name}.conv.weight"], padding=padding)
    x = F.batch_norm(
        x, *(state[f"{name}.batch_norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    )
    return F.relu(x)


def uper_head(maps, state, name):
    """UperNet as its paper and mmseg have it: pyramid pooling on the last map, top-down sums, one fusion of all levels."""
    last, up = maps[-1], {"mode": "bilinear", "align_corners": False}
    pooled = [last]
    for place, scale in enumerate((1, 2, 3, 6)):
        part = conv_module(F.adaptive_avg_pool2d(last, scale), state, f"{name}.psp_modules.{place}.1")
        pooled.append(F.interpolate(part, size=last.shape[2:], **up))
    levels = [conv_module(x, state, f"{name}.lateral_convs.{place}") for place, x in enumerate(maps[:-1])]
    levels.append(conv_module(torch.cat(pooled, 1), state, f"{name}.bottleneck", 1))
    for place in (3, 2, 1):
        levels[place - 1] = levels[place - 1] + F.interpolate(levels[place], size=levels[place - 1].shape[2:], **up)
    outs = [conv_module(x, state, f"{name}.fpn_convs.{place}", 1) for place, x in enumerate(levels[:-1])] + [levels[-1]]
    outs = [outs[0], *(F.interpolate(x, size=outs[0].shape[2:], **up) for x in outs[1:])]
    fused = conv_module(torch.cat(outs, 1), state, f"{name}.fpn_bottleneck", 1)
    return F.conv2d(fused, state[f"{name}.classifier.weight"], state[f"{name}.classifier.bias"])


@pytest.mark.parametrize("config", [VIT, SWIN], ids=["vit", "swin"])
def test_a_literal_restatement_gives_the_same_bits(config):
    model, images = shaken(config).eval(), torch.randn(2, 3, 60, 90)
    state = model.state_dict()
    if config is SWIN:
        norms = [(state[f"norms.{k}.weight"], state[f"norms.{k}.bias"]) for k in range(4)]
        places = [x.permute(0, 2, 3, 1) for x in model.maps(images)]
        maps = [F.layer_norm(x, x.shape[3:], *norm) for x, norm in zip(places, norms, strict=True)]
        maps = [x.permute(0, 3, 1, 2) for x in maps]
    else:
        maps = model.maps(images, (1, 2, 4, 5))
    with torch.no_grad():
        assert torch.equal(model(images).logits, uper_head(maps, state, "decode_head"))
        source = maps[2] if config is SWIN else maps[3]
        hidden = conv_module(source, state, "auxiliary_head.convs.0", 1)
        wanted = F.conv2d(hidden, state["auxiliary_head.classifier.weight"], state["auxiliary_head.classifier.bias"])
        assert torch.equal(model.auxiliary_head(maps), wanted)


@pytest.mark.parametrize(("config", "first"), [(VIT, (8, 12)), (SWIN, (15, 23))], ids=["vit", "swin"])
def test_images_of_any_size_and_the_auxiliary_head_in_training_alone(config, first):
    model = build_uper(config)
    output = model(torch.randn(2, 3, 60, 90))
    assert output.logits.shape == (2, 7, *first) and output.auxiliary.shape[:2] == (2, 7)
    assert model.eval()(torch.randn(1, 3, 60, 90)).auxiliary is None
    assert build_uper(UperConfig(**{**config.as_dict(), "auxiliary_channels": 0})).auxiliary_head is None


def test_dropout_is_of_whole_channels_before_the_classifier():
    model = shaken(VIT)
    seen = []
    model.decode_head.classifier.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    images = torch.randn(2, 3, 48, 48)
    maps = [x.detach() for x in model.encode(images).maps]
    assert model.decode_head.classifier.dropout == 0.1
    model.decode_head.classifier.dropout = 0.5
    found = [model.decode_head(maps) for _ in range(2)]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(*found)
    model.eval()
    assert torch.equal(model.decode_head(maps), model.decode_head(maps))


def test_only_the_backbones_layers_are_made_low_rank():
    for config in (VIT, SWIN):
        model = build_uper(config)
        compress(model, 2, exclude=dense_heads(model))
        names = set(low_rank_layers(model))
        assert names and all(".blocks." in name for name in names)
        assert {name.rpartition(".")[2] for name in names} == {"qkv", "proj", "fc1", "fc2"}


def test_a_vits_classifier_and_last_norm_are_kept_and_not_trained():
    model = build_uper(VIT)
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert still == {f"backbone.{part}.{kind}" for part in ("head", "norm") for kind in ("weight", "bias")}
    output = model(torch.randn(2, 3, 48, 48))
    (output.logits.sum() + output.auxiliary.sum()).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n not in still)
    swin = build_uper(SWIN)
    assert swin.config.classes == 0 and not any(
        n.startswith(("backbone.head", "backbone.norm")) for n in swin.state_dict()
    )


def test_hidden_states_are_those_of_every_block():
    images = torch.randn(1, 3, 64, 64)
    for config in (VIT, SWIN):
        model = build_uper(config).eval()
        encoded = model.encode(images, keep_hidden=True)
        assert len(encoded.hidden) == sum(config.depths) == len(model.blocks)
        assert encoded.embedded is not None and model.encode(images).hidden == ()
        maps = model.encode(images).maps
        assert all(torch.equal(a, b) for a, b in zip(maps, encoded.maps, strict=True))


def test_patches_that_were_not_seen_are_zero_in_the_maps():
    model = build_uper(VIT)
    model.keep_share = 0.5
    encoded = model.encode(torch.randn(2, 3, 48, 48), keep_hidden=True)
    unseen = (encoded.maps[0] == 0).all(1).flatten(1)
    assert unseen.sum(1).tolist() == [18, 18]
    for image in range(2):
        assert set(torch.arange(36)[~unseen[image]].tolist()) == {int(k) - 1 for k in encoded.kept[image] if k > 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": 0}, "labels 0"), ({"dropout": 1.0}, "dropout 1.0"), ({"token_merging": 2}, "a map of all places")],
)
def test_a_config_that_makes_no_model(change, message):
    with pytest.raises(UserError, match=message):
        UperConfig(**{**VIT.as_dict(), **change})


def test_three_stages_are_no_four_maps():
    with pytest.raises(UserError, match="4 maps.* 3 stages"):
        build_uper(UperConfig(**{**SWIN.as_dict(), "depths": (1, 1, 1), "heads": (1, 1, 2)}))


def test_initial_weights_are_mmsegs():
    torch.manual_seed(0)
    model = build_uper(UperConfig(**{**VIT.as_dict(), "channels": 64}))
    conv = model.decode_head.fpn_bottleneck.conv.weight
    assert conv.std().item() == pytest.approx((2 / (conv.shape[0] * 9)) ** 0.5, rel=0.05)  # He's, by the outputs
    assert model.decode_head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert not model.decode_head.classifier.bias.any()
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
