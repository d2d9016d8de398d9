"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math
from collections.abc import Callable
from typing import Literal, get_args

ScheduleKind = Literal["constant", "cosine", "cosine_epoch"]

# ALBEF warms up in units of this many steps, within the first epoch
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
    cosine_epoch: what ALBEF publishes (see `_cosine_epoch`).

    Args:
        kind: one of the three above.
        base_lr: highest rate.
        min_lr: rate at the end of a cosine.
        warmup_lr: rate at the first step of a warm-up.
        warmup_steps: length of the warm-up in optimiser steps; of cosine_epoch in units of 100 steps of the first epoch
            (ALBEF's `warmup_epochs`).
        total_steps: optimiser steps of the run.
        steps_per_epoch: optimiser steps of an epoch.

    Raises:
        ValueError: for an unknown kind, numbers that make no schedule, or a cosine whose warm-up is longer than the run.
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
        raise ValueError(
            f"optim.warmup_steps ({warmup_steps}) is longer than the run, which has {total_steps} optimiser steps by "
            f"train.epochs or train.steps; set optim.warmup_steps to {total_steps} or less, or train longer"
        )

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
    """ALBEF's schedule: a cosine by the epoch after a warm-up within the first epoch.

    The published loop sets the rate of the next step after it has updated the weights: after steps 0, 100, 200, ... of epoch
    0 to the warm-up's value at t = 0, 1, 2, ..., up to t = `warmup`, and before epoch e > 0 to the value at t = e + `warmup`.
    The value at t is linear from `warmup_lr` to `base_lr` for t < `warmup`. The warm-up is a prefix: from there on the
    cosine stands at t - `warmup` of `epochs`, so that epoch e > 0 has the rate of e / `epochs`. A warm-up that is longer
    than epoch 0 is cut there. Beyond the last epoch the rate is `min_lr`.
    """

    def lr(step: int) -> float:
        epoch, i = divmod(step, steps_per_epoch)
        if epoch > 0:
            return _half_cosine(base_lr, min_lr, min(epoch, epochs) / epochs)
        t = min(max(i - 1, 0) // WARMUP_UNIT, warmup)
        return base_lr if t == warmup else warmup_lr + t * (base_lr - warmup_lr) / warmup

    return lr
