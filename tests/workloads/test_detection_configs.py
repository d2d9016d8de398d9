"""The published detection configurations: model, optimiser, schedule and images that they give, on the meta device."""

from pathlib import Path

import pytest
import torch

from pela_vl.base import config
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.cost import count_parameters
from pela_vl.lowrank import apply_plan, plan_ranks
from pela_vl.models.vision.detector_config import STAGES, CascadeRules
from pela_vl.settings import Settings
from pela_vl.training.optim import model_groups
from pela_vl.training.schedule import schedule_of
from pela_vl.workloads.detection import Detection

FOLDER = Path(__file__).parents[2] / "configs/vision"
PUBLISHED = {"cascade_swin_base": (12, (8, 11), False), "cascade_swin_base_3x": (36, (27, 33), True)}
"""Epochs, those at whose start the rate falls, and whether images are cropped."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name):
    settings = config.load(Settings, FOLDER / f"{name}.yaml")
    task, (epochs, falls, crops) = Detection(), PUBLISHED[name]
    task.check(settings)
    task.classes = tuple(str(number) for number in range(80))
    settings.model.size = "swin_base_patch4_window7_224"  # what the released file is taken for
    with torch.device("meta"):
        loaded = task.load(settings, None)
        assert count_parameters(loaded.model) == 144_977_002
        groups = model_groups(loaded.model, loaded.model.named_parameters(), settings.optim)
        model = loaded.model
        apply_plan(model, plan_ranks(model, 2, exclude=dense_heads(model)), init="empty")
        assert count_parameters(model) == 103_010_922
    assert model.rules == CascadeRules() and model.cascade == STAGES
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert (rates[0], rates[-1]) == pytest.approx((0.0, 0.3))
    shifted = [any(block.shift_size) for block in model.blocks]
    assert shifted == [False, True] * 12  # as mmdet, in every second block of every stage
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decays["backbone.layers.0.blocks.0.attn.qkv.bias"] == decays["box_heads.0.shared.1.1.weight"] == 0.05
    assert decays["backbone.layers.0.blocks.0.norm1.weight"] == decays["norms.3.bias"] == 0.0
    assert decays["backbone.layers.0.blocks.0.attn.relative_position_bias_table"] == 0.0
    per_epoch = 117_266 // 16
    rate = schedule_of(settings.optim, epochs * per_epoch, per_epoch)
    assert rate(0) == pytest.approx(1e-7) and rate(500) == pytest.approx(1e-4)
    for start, (before, after) in zip(falls, ((1e-4, 1e-5), (1e-5, 1e-6)), strict=True):
        assert rate(start * per_epoch - 1) == pytest.approx(before)
        assert rate(start * per_epoch) == pytest.approx(after)
    transform = task.train_transform(settings, loaded.header)
    assert (transform.crop, transform.long, transform.hflip) == (crops, 1333, 0.5)
    assert list(transform.short) == list(range(480, 801, 32)) and settings.detection.test_short == 800
    assert 8 * settings.train.batch_size == 16 and settings.train.epochs == epochs
