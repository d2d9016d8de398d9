"""The published configurations: each gives the model and the training step that it says, counted on the meta device."""

import re
from pathlib import Path

import pytest
import torch

from pela_vl.base import config
from pela_vl.checkpoints.loading import dense_heads
from pela_vl.cost import count_parameters
from pela_vl.lowrank import apply_plan, plan_ranks
from pela_vl.settings import Settings
from pela_vl.training.optim import model_groups
from pela_vl.training.schedule import schedule_of
from pela_vl.workloads.classification import Classification

FOLDER = Path(__file__).parents[2] / "configs/vision"
# parameters after the cut (Table 1); drop path of the first and the last block; images of an optimiser step
PUBLISHED = {
    "deit_base": (44_081_896, 0.0, 0.1, 256),
    "deit3_large": (153_232_360, 0.45, 0.45, 64),
    "swin_base": (62_164_128, 0.0, 0.5, 256),
}


def test_every_configuration_is_tested():
    """Those of classification; segmentation's and detection's have tests of their own."""
    names = {file.stem for file in FOLDER.glob("*.yaml")}
    assert {name for name in names if not name.startswith(("upernet_", "cascade_"))} == set(PUBLISHED)


def test_rwp_is_in_the_form_that_its_released_weight_belongs_to():
    for name, weight in (("deit_base", 0.0), ("deit3_large", 0.0), ("swin_base", 1.0)):
        losses = config.load(Settings, FOLDER / f"{name}.yaml").losses
        assert (losses.rwp, losses.rwp_form) == (weight, "released")


def test_a_comments_command_that_starts_from_the_configs_own_run_writes_elsewhere():
    """A run is not trained over: the command would end with the advice to set another output."""
    found = 0
    for file in sorted(FOLDER.glob("*.yaml")):
        output = config.load(Settings, file).output
        for line in file.read_text().splitlines():
            changes = re.findall(r"[a-z_.]+=[^\s,;]+", line) if line.startswith("#") else []
            if any(change.startswith(f"init.checkpoint={output}/") for change in changes):
                assert config.load(Settings, file, changes).output != output, f"{file.name}: {line}"
                found += 1
    assert found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name):
    settings = config.load(Settings, FOLDER / f"{name}.yaml")
    task, (parameters, first, last, batch) = Classification(), PUBLISHED[name]
    task.check(settings)
    task.classes = tuple(str(number) for number in range(1000))
    with torch.device("meta"):
        loaded = task.load(settings, None)
        model = loaded.model
        exclude = settings.compress.exclude or dense_heads(model)
        apply_plan(model, plan_ranks(model, settings.compress.kappa, exclude=exclude), init="empty")
    assert count_parameters(model) == parameters
    step = task.step(settings, model, True, None)
    assert step.streams == ("blocks",) and step.ema is None
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert (rates[0], rates[-1]) == pytest.approx((first, last))
    groups = model_groups(model, model.named_parameters(), settings.optim)
    assert {group["weight_decay"] for group in groups} == {0.0, settings.optim.weight_decay}
    assert 4 * settings.train.batch_size == batch
    per_epoch = 1_281_167 // batch
    rate = schedule_of(settings.optim, settings.train.epochs * per_epoch, per_epoch)
    assert (
        rate(0) == settings.optim.warmup_lr
        and max(map(rate, range(0, 5 * per_epoch, per_epoch))) < settings.optim.lr * 1.0001
    )
    end = rate((settings.train.epochs - 1) * per_epoch)
    assert settings.optim.min_lr < end < settings.optim.min_lr + 0.01 * settings.optim.lr
    transform = task.train_transform(settings, loaded.header)
    assert transform.image_size == 224 and transform.erasing == settings.vision.erasing
