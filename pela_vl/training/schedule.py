"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math
from collections.abc import Callable
from typing import Literal, get_args

ScheduleKind = Literal["constant", "cosine", "cosine_epoch"]

# ALBEF warms up in units of this many steps, all within the first epoch
WARMUP_UNIT = 100


def make_schedule(
    kind: ScheduleKind,
    base_lr: float,
    min_lr: float,
    warmup_lr: float,
    warmup_steps: int,
    total_steps: int,
    steps_per_epoch: int,
) -> Callable[[int], float]:
    """Return `lr(step)` for optimiser steps 0, 1, 2, ...; beyond the last step the final value stands.

    constant: linear warm-up from `warmup_lr` over `warmup_steps`, then `base_lr`.
    cosine: the same warm-up, then half a cosine from `base_lr` to `min_lr`, reached at `total_steps`.
    cosine_epoch: what ALBEF publishes (see `_cosine_epoch`); `warmup_steps` then is its `warmup_epochs`, which counts
    units of 100 steps in the first epoch.

    Raises ValueError for an unknown kind or numbers that make no schedule.
    """
    if kind not in get_args(ScheduleKind):
        raise ValueError(f"unknown schedule {kind!r}; choose one of {', '.join(get_args(ScheduleKind))}")
    if total_steps < 1 or steps_per_epoch < 1 or warmup_steps < 0:
        raise ValueError(
            f"a schedule wants total_steps >= 1, steps_per_epoch >= 1 and warmup_steps >= 0, "
            f"got {total_steps}, {steps_per_epoch}, {warmup_steps}"
        )
    if not all(math.isfinite(value) and value >= 0 for value in (base_lr, min_lr, warmup_lr)):
        raise ValueError(f"learning rates must be finite and >= 0, got {base_lr}, {min_lr}, {warmup_lr}")
    if kind == "cosine_epoch":
        epochs = math.ceil(total_steps / steps_per_epoch)
        return _cosine_epoch(base_lr, min_lr, warmup_lr, warmup_steps, epochs, steps_per_epoch)
    if kind == "cosine" and warmup_steps > total_steps:
        raise ValueError(f"warmup_steps ({warmup_steps}) must not exceed total_steps ({total_steps})")

    def lr(step: int) -> float:
        if step < warmup_steps:
            return warmup_lr + (base_lr - warmup_lr) * step / warmup_steps
        if kind == "constant":
            return base_lr
        done = (min(step, total_steps) - warmup_steps) / max(total_steps - warmup_steps, 1)
        return _half_cosine(base_lr, min_lr, done)

    return lr


def _half_cosine(start: float, end: float, done: float) -> float:
    """Half a cosine from `start` (done = 0) to `end` (done = 1)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


def _cosine_epoch(
    base_lr: float, min_lr: float, warmup_lr: float, warmup: int, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """ALBEF's schedule: timm's cosine scheduler at time t, t changing rarely.

    In epoch 0, t = i // 100 for step i, up to t = `warmup`; epoch e > 0 has t = e + `warmup`. The value at t is
    linear from `warmup_lr` for t < `warmup`, a cosine over `epochs` for t < `epochs`, else `min_lr`. The warm-up thus
    eats into the cosine: with 30 epochs and 20 units of warm-up the rate falls at once to a quarter of its height
    and is `min_lr` from epoch 10.
    """

    def lr(step: int) -> float:
        epoch, i = divmod(step, steps_per_epoch)
        t = epoch + warmup if epoch > 0 else min(i // WARMUP_UNIT, warmup)
        if t < warmup:
            return warmup_lr + t * (base_lr - warmup_lr) / warmup
        return _half_cosine(base_lr, min_lr, t / epochs) if t < epochs else min_lr

    return lr
