"""The published configurations of segmentation: each gives the schedule, the rates and the transform that it says."""

from pathlib import Path

import pytest
import torch

from pela_vl.base import config
from pela_vl.checkpoints.segmentation_loading import Heads, load_uper
from pela_vl.cost import count_parameters
from pela_vl.settings import Settings
from pela_vl.training.optim import model_groups
from pela_vl.training.schedule import schedule_of
from pela_vl.workloads.segmentation import Segmentation

FOLDER = Path(__file__).parents[2] / "configs/vision"
# timm's name, parameters without a ViT's unused classifier (Table 2's less that), drop path of the first and the last block
PUBLISHED = {
    "upernet_deit_base": ("deit_base_patch16_224", 121_345_044 - 769_000, 0.0, 0.1),
    "upernet_swin_base": ("swin_base_patch4_window7_224", 121_279_716, 0.0, 0.3),
    "upernet_deit3_large": ("deit3_large_patch16_224", 428_385_556 - 1_025_000, 0.45, 0.45),
}


def test_every_configuration_is_tested():
    assert {file.stem for file in FOLDER.glob("upernet_*.yaml")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name, tmp_path):
    settings = config.load(Settings, FOLDER / f"{name}.yaml")
    size, parameters, first, last = PUBLISHED[name]
    options, settings.model.size = settings.segmentation, size
    with torch.device("meta"):
        heads = Heads(options.channels, options.auxiliary_channels, options.dropout)
        model = load_uper(settings.model, None, [str(k) for k in range(150)], heads).model
    assert count_parameters(model) == parameters
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert (rates[0], rates[-1]) == pytest.approx((first, last))
    groups = model_groups(model, model.named_parameters(), settings.optim)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.01}
    still = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    norms = {n for n in still | decayed if "norm" in n and not n.startswith(("decode_head.", "auxiliary_head."))}
    assert norms and norms <= still
    assert {n for n in still | decayed if n.endswith(".bias")} - norms <= decayed
    assert "decode_head.bottleneck.batch_norm.weight" in decayed
    positions = [n for n in still | decayed if n.endswith(("pos_embed", "cls_token", "relative_position_bias_table"))]
    assert positions and set(positions) <= still
    rate = schedule_of(settings.optim, settings.train.steps, 1263)
    assert rate(0) == pytest.approx(6e-11, rel=1e-3) and rate(1500) == pytest.approx(6e-5 * (1 - 1500 / 160_000))
    assert rate(80_000) == pytest.approx(3e-5) and rate(160_000) == 0 and settings.train.steps == 160_000
    assert settings.train.batch_size == 2 and settings.compress.kappa is None and settings.losses.fd == 0
    classes = tmp_path / "classes.json"
    classes.write_text('{"classes": [{"name": "a", "value": 1}], "ignored": [0]}')
    options.classes = str(classes)
    task = Segmentation()
    task.check(settings)
    transform = task.train_transform(settings, load_header(model))
    assert (transform.size, transform.scale, transform.ratio) == (512, (2048, 512), (0.5, 2.0))
    assert transform.largest_class == 0.75 and transform.hflip == 0.5 and transform.distortion


def load_header(model):
    """The header of a model's checkpoint."""
    from pela_vl.checkpoints.header import Header
    from pela_vl.checkpoints.segmentation_loading import KIND

    return Header(KIND, model.config)
