"""Parameter groups of the vision models, against timm's own."""

import pytest
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from vision_files import DEIT3, SWIN, VIT

from pela_vl.base.errors import UserError
from pela_vl.lowrank import compress
from pela_vl.models.vision import build_vision
from pela_vl.models.vision.layers import layer_scales, undecayed
from pela_vl.settings import OptimSettings
from pela_vl.training.optim import model_groups

CONFIGS = {"deit": VIT, "deit3": DEIT3, "swin": SWIN}


def vision_parameter_groups(model, lr, weight_decay, layer_decay=1.0):
    optim = OptimSettings(lr=lr, weight_decay=weight_decay, decay="timm", layer_decay=layer_decay)
    return model_groups(model, model.named_parameters(), optim)


def by_parameter(groups, lr):
    return {id(p): (g["weight_decay"], lr * g.get("lr_scale", 1.0)) for g in groups for p in g["params"]}


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_decay_and_rates_are_timms(name, low_rank):
    model = build_vision(CONFIGS[name])
    if low_rank:
        compress(model, 2, exclude=model.HEADS)
    net = model.backbone
    ours = by_parameter(vision_parameter_groups(model, 1e-3, 0.05), 1e-3)
    theirs = param_groups_weight_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay())
    assert ours == by_parameter(theirs, 1e-3) and len(ours) == len(list(model.parameters()))
    groups = vision_parameter_groups(model, 1e-3, 0.05, layer_decay=0.7)
    theirs = param_groups_layer_decay(net, 0.05, net.no_weight_decay(), layer_decay=0.7)
    expected = by_parameter(theirs, 1e-3)
    assert {k: (d, pytest.approx(r)) for k, (d, r) in expected.items()} == by_parameter(groups, 1e-3)
    assert all(group["lr"] == pytest.approx(1e-3 * group["lr_scale"]) for group in groups)
    parameters = dict(model.named_parameters())
    assert all(parameters[n] is p for g in groups for n, p in zip(g["names"], g["params"], strict=True))


def test_what_is_not_decayed():
    assert {"backbone.pos_embed", "backbone.cls_token", "backbone.blocks.0.norm1.weight"} <= undecayed(
        build_vision(VIT)
    )
    swin = undecayed(build_vision(SWIN))
    assert "backbone.layers.0.blocks.0.attn.relative_position_bias_table" in swin
    assert "backbone.layers.0.blocks.0.attn.qkv.weight" not in swin


def test_rates_fall_from_the_head_downwards():
    scales = layer_scales(build_vision(VIT), 0.5)
    names = ("head.weight", "blocks.1.mlp.fc1.weight", "blocks.0.mlp.fc1.weight", "patch_embed.proj.weight")
    assert [scales["backbone." + name] for name in names] == [1, 0.5, 0.25, 0.125]
    assert set(layer_scales(build_vision(SWIN), 1.0).values()) == {1.0}


def test_frozen_parameters_have_no_group():
    model = build_vision(VIT)
    model.backbone.blocks.requires_grad_(False)
    names = [name for group in vision_parameter_groups(model, 1e-3, 0.1) for name in group["names"]]
    assert names and not any(".blocks." in name for name in names)
    with pytest.raises(UserError, match="layer_decay 0"):
        vision_parameter_groups(model, 1e-3, 0.1, 0)
    model.requires_grad_(False)
    with pytest.raises(UserError, match="no parameter is trainable"):
        vision_parameter_groups(model, 1e-3, 0.1)


def test_a_model_that_cannot_say_is_refused():
    model = torch.nn.Linear(2, 2)
    for optim, name in (
        (OptimSettings(decay="timm"), "optim.decay: timm"),
        (OptimSettings(layer_decay=0.9), "layer_decay"),
    ):
        with pytest.raises(UserError, match=f"{name} is for image classifiers, not for Linear"):
            model_groups(model, model.named_parameters(), optim)


def test_a_rate_by_name_and_one_by_depth_multiply():
    model = build_vision(VIT)
    optim = OptimSettings(lr=1.0, layer_decay=0.5, lr_scale={"backbone.head.*": 3.0, "*.blocks.0.*": 5.0})
    rates = {n: g["lr"] for g in model_groups(model, model.named_parameters(), optim) for n in g["names"]}
    assert rates["backbone.head.weight"] == 3 and rates["backbone.blocks.0.attn.qkv.weight"] == 5 * 0.25
