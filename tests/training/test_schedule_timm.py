"""The vision schedules against timm's, and against the published formulas at hand-worked steps."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from pela_vl.settings import OptimSettings
from pela_vl.training.schedule import cosine_by_epoch, poly, schedule_of, steps


@pytest.mark.parametrize(("epochs", "warmup"), [(50, 1), (20, 1), (50, 3), (5, 0)])
def test_timms_cosine_by_the_epoch(epochs, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=6.25e-5)
    theirs = CosineLRScheduler(optimizer, epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6 if warmup else 0)
    ours = cosine_by_epoch(6.25e-5, 1e-5, 1e-6, warmup, epochs, steps_per_epoch=7)
    for epoch in range(epochs + 2):
        theirs.step(epoch)
        for step in (7 * epoch, 7 * epoch + 6):
            assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_mmsegs_poly():
    lr = poly(6e-5, 0.0, 1.0, 160_000, 1500, 1e-6)
    assert lr(0) == pytest.approx(6e-5 * 1e-6)
    assert lr(750) == pytest.approx(6e-5 * (1 - 750 / 160_000) * (1 - 0.5 * (1 - 1e-6)))
    assert lr(1500) == pytest.approx(6e-5 * (1 - 1500 / 160_000))
    assert lr(80_000) == pytest.approx(3e-5) and lr(160_000) == 0.0 == lr(170_000)
    curved = poly(1.0, 0.1, 0.9, 100)
    assert curved(50) == pytest.approx(0.9 * 0.5**0.9 + 0.1) and curved(100) == pytest.approx(0.1)


def test_mmdets_steps():
    lr = steps(1e-4, (800, 1100), warmup_steps=100, warmup_ratio=0.001)
    assert [lr(s) for s in (100, 799, 800, 1099, 1100, 5000)] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])
    assert lr(0) == pytest.approx(1e-7) and lr(50) == pytest.approx(1e-4 * (1 - 0.5 * 0.999))


@pytest.mark.parametrize(
    "make",
    [
        lambda: cosine_by_epoch(1, 0, 0, 3, 2, 5),
        lambda: cosine_by_epoch(1, -1, 0, 0, 2, 5),
        lambda: poly(1, 0, 0, 10),
        lambda: poly(1, 0, 1, 0),
        lambda: poly(1, 0, 1, 10, 5, 2.0),
        lambda: steps(1, (5, 3)),
        lambda: steps(1, (0,)),
        lambda: steps(float("nan"), (3,)),
    ],
)
def test_numbers_that_make_no_schedule(make):
    with pytest.raises(ValueError):
        make()


def test_the_settings_name_each():
    rates = {"lr": 6e-5, "min_lr": 1e-6, "warmup_lr": 6e-6}
    timms = OptimSettings(schedule="cosine_timm", warmup_epochs=3, **rates)
    assert schedule_of(timms, 40, 4)(17) == cosine_by_epoch(6e-5, 1e-6, 6e-6, 3, 10, 4)(17)
    mmseg = OptimSettings(schedule="poly", power=0.9, warmup_steps=5, **rates)
    assert schedule_of(mmseg, 40, 4)(3) == poly(6e-5, 1e-6, 0.9, 40, 5, 0.1)(3)
    mmdet = OptimSettings(schedule="step", milestones=[8, 9], gamma=0.5, **rates)
    found = [schedule_of(mmdet, 40, 4)(step) for step in (31, 32, 36)]
    assert found == pytest.approx([6e-5, 3e-5, 1.5e-5])
    with pytest.raises(ValueError, match="warmup_epochs is for cosine_timm"):
        schedule_of(OptimSettings(warmup_epochs=1), 40, 4)
