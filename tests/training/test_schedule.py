"""Schedules against timm's scheduler, torch's, and their own definition."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler

from pela_vl.training.schedule import make_schedule

PUBLISHED = json.loads((Path(__file__).parent / "published_schedules.json").read_text(encoding="utf-8"))
PUBLISHED.pop("about")


def published_loop(scheduler, optimizer, epochs: int, warmup: int, per_epoch: int):
    """The rate that each step of the published training loop trains with; it steps its scheduler after the optimiser."""
    for epoch in range(epochs):
        if epoch > 0:
            scheduler.step(epoch + warmup)
        for i in range(per_epoch):
            yield optimizer.param_groups[0]["lr"]
            if epoch == 0 and i % 100 == 0 and i <= warmup * 100:
                scheduler.step(i // 100)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("per_epoch", [2117, 250])
def test_cosine_epoch_is_what_the_published_code_prints(name: str, per_epoch: int) -> None:
    """Every step of a run against the rates stored from the published code; 250 steps cut most warm-ups short."""
    rates = PUBLISHED[name]
    epochs, warmup = rates["epochs"], rates["warmup_epochs"]
    lr = make_schedule(
        "cosine_epoch", rates["lr"], rates["min_lr"], rates["warmup_lr"], warmup, epochs * per_epoch, per_epoch
    )
    first = rates["epoch_0_by_t"]
    # a change of the rate after step i is felt by step i + 1
    expected = [first[min(max(i - 1, 0) // 100, warmup)] for i in range(per_epoch)]
    expected += [rate for rate in rates["epoch_1_on"] for _ in range(per_epoch)]
    wrong = [(divmod(i, per_epoch), lr(i), rate) for i, rate in enumerate(expected) if abs(lr(i) - rate) > 1e-12 * rate]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize(
    ("epochs", "warmup", "per_epoch"),
    [(30, 20, 2500), (10, 1, 250), (5, 0, 130), (4, 3, 40), (3, 2, 1), (2, 5, 700)],
)
def test_cosine_epoch_equals_the_published_loop_on_timm(epochs: int, warmup: int, per_epoch: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-5, warmup_lr_init=3e-6, warmup_t=warmup, warmup_prefix=True
    )
    lr = make_schedule("cosine_epoch", 2e-4, 1e-5, 3e-6, warmup, epochs * per_epoch, per_epoch)
    for step, expected in enumerate(published_loop(scheduler, optimizer, epochs, warmup, per_epoch)):
        assert lr(step) == pytest.approx(expected, rel=1e-12), divmod(step, per_epoch)
    assert lr(epochs * per_epoch) == lr(10 * epochs * per_epoch) == pytest.approx(1e-5)


def test_a_warm_up_longer_than_the_run_names_both_keys() -> None:
    with pytest.raises(
        ValueError, match=r"optim\.warmup_steps \(100\).* 16 .*train\.epochs or train\.steps; set optim"
    ):
        make_schedule("cosine", 1e-4, 1e-5, 1e-5, 100, 16, 16)


def test_cosine_equals_torch_after_the_warmup() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    twin = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=1e-5)
    lr = make_schedule("cosine", 1e-3, 1e-5, 1e-6, 10, 100, 7)
    for step in range(10, 101):
        assert lr(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        twin.step()


# no time limits of hypothesis: a busy machine is no defect
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["constant", "cosine"]),
    warmup=st.integers(0, 50),
    rest=st.integers(1, 100),
    low=st.floats(0, 1e-4),
    first=st.floats(0, 1e-3),
)
def test_shape(kind: str, warmup: int, rest: int, low: float, first: float) -> None:
    total, base = warmup + rest, 1e-3
    lr = make_schedule(kind, base, low, first, warmup, total, 10)
    rates = [lr(step) for step in range(total + 5)]
    assert all(a <= b + 1e-15 for a, b in zip(rates[:warmup], rates[1 : warmup + 1], strict=True))
    assert all(a >= b - 1e-15 for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert rates[warmup] == pytest.approx(base)
    if warmup:
        assert rates[0] == first
    end = base if kind == "constant" else low
    assert rates[total:] == pytest.approx([end] * 5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("linear", 1, 0, 0, 0, 10, 5),
        ("cosine", math.nan, 0, 0, 0, 10, 5),
        ("cosine", -1, 0, 0, 0, 10, 5),
        ("cosine", 1, 0, 0, -1, 10, 5),
        ("cosine", 1, 0, 0, 11, 10, 5),
        ("cosine", 1, 0, 0, 0, 0, 5),
        ("cosine_epoch", 1, 0, 0, 0, 10, 0),
    ],
)
def test_refuses(arguments: tuple) -> None:
    with pytest.raises(ValueError):
        make_schedule(*arguments)
