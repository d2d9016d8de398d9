"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from pela_vl.settings import OptimSettings

Schedule = Callable[[int], float]
"""The rate of an optimiser step 0, 1, 2, ...; beyond the last step the final value stands."""
ScheduleKind = Literal["constant", "cosine", "cosine_epoch"]

# ALBEF warms up in units of this many steps, within the first epoch
WARMUP_UNIT = 100


def schedule_of(optim: OptimSettings, total_steps: int, steps_per_epoch: int) -> Schedule:
    """The schedule that the settings name.

    Args:
        optim: Kind, rates, warm-up and what the kind needs: `warmup_epochs` (cosine_timm), `power` (poly), or `milestones` in
            epochs and `gamma` (step).
        total_steps: Optimiser steps of the run.
        steps_per_epoch: Optimiser steps of an epoch.

    Raises:
        ValueError: For numbers that make no schedule, and for `warmup_epochs` of a kind that counts its warm-up in steps.
    """
    lr, floor, start = optim.lr, optim.min_lr, optim.warmup_lr
    ratio = start / lr if lr else 1.0
    if optim.schedule == "cosine_timm":
        epochs = max(math.ceil(total_steps / steps_per_epoch), 1)
        return cosine_by_epoch(lr, floor, start, optim.warmup_epochs, epochs, steps_per_epoch)
    if optim.warmup_epochs:
        raise ValueError(f"warmup_epochs is for cosine_timm; for {optim.schedule} set warmup_steps")
    if optim.schedule == "poly":
        return poly(lr, floor, optim.power, total_steps, optim.warmup_steps, ratio)
    if optim.schedule == "step":
        reached = [epoch * steps_per_epoch for epoch in optim.milestones]
        return steps(lr, reached, optim.gamma, optim.warmup_steps, ratio)
    return make_schedule(optim.schedule, lr, floor, start, optim.warmup_steps, total_steps, steps_per_epoch)


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
        kind: One of the three above.
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


def cosine_by_epoch(
    base_lr: float, min_lr: float, warmup_lr: float, warmup_epochs: int, epochs: int, steps_per_epoch: int
) -> Schedule:
    """timm's cosine schedule, which changes the rate at the start of an epoch only.

    The rate rises linearly from `warmup_lr` over the first `warmup_epochs`. From there on it is the half cosine from `base_lr` at
    epoch 0 to `min_lr` at `epochs`. So the warm-up replaces the cosine's start and does not delay it, as in timm.

    Args:
        base_lr: Highest rate.
        min_lr: Rate after the last epoch.
        warmup_lr: Rate of epoch 0 where there is a warm-up.
        warmup_epochs: Length of the warm-up in epochs, 0 to `epochs`.
        epochs: Of the run, at least 1.
        steps_per_epoch: Optimiser steps of an epoch, at least 1.

    Raises:
        ValueError: For numbers that make no schedule.
    """
    _check(base_lr, min_lr, warmup_lr)
    if epochs < 1 or steps_per_epoch < 1 or not 0 <= warmup_epochs <= epochs:
        raise ValueError(
            f"epochs {epochs}, warmup_epochs {warmup_epochs}, steps_per_epoch {steps_per_epoch} do not fit"
        )

    def lr(step: int) -> float:
        epoch = step // steps_per_epoch
        if epoch < warmup_epochs:
            return warmup_lr + (base_lr - warmup_lr) * epoch / warmup_epochs
        return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))

    return lr


def poly(
    base_lr: float, min_lr: float, power: float, total_steps: int, warmup_steps: int = 0, warmup_ratio: float = 1.0
) -> Schedule:
    """mmseg's polynomial decay: (base_lr - min_lr) (1 - step / total_steps)^power + min_lr.

    In the first `warmup_steps` that value is multiplied by a factor that rises linearly from `warmup_ratio` to 1.

    Args:
        base_lr: Rate at step 0 without a warm-up.
        min_lr: Rate at `total_steps`.
        power: Exponent, above 0; 1 is a linear decay.
        total_steps: Optimiser steps of the run, at least 1.
        warmup_steps: Length of the warm-up in optimiser steps; 0 for none.
        warmup_ratio: Factor at step 0, from 0 to 1.

    Raises:
        ValueError: For numbers that make no schedule.
    """
    _check(base_lr, min_lr)
    _check_warmup(warmup_steps, warmup_ratio)
    if total_steps < 1 or power <= 0:
        raise ValueError(f"total_steps {total_steps} must be 1 at least and power {power} above 0")

    def lr(step: int) -> float:
        left = 1 - min(step, total_steps) / total_steps
        return _warmed((base_lr - min_lr) * left**power + min_lr, step, warmup_steps, warmup_ratio)

    return lr


def steps(
    base_lr: float, milestones: Sequence[int], gamma: float = 0.1, warmup_steps: int = 0, warmup_ratio: float = 1.0
) -> Schedule:
    """mmdet's step decay: `base_lr` times `gamma` for every milestone that was reached.

    In the first `warmup_steps` that value is multiplied by a factor that rises linearly from `warmup_ratio` to 1.

    Args:
        base_lr: Rate before the first milestone.
        milestones: Optimiser steps, rising, the first at least 1.
        gamma: Factor of each milestone, above 0 and at most 1.
        warmup_steps: Length of the warm-up in optimiser steps; 0 for none.
        warmup_ratio: Factor at step 0, from 0 to 1.

    Raises:
        ValueError: For numbers that make no schedule.
    """
    _check(base_lr)
    _check_warmup(warmup_steps, warmup_ratio)
    places = list(milestones)
    if places != sorted(set(places)) or any(place < 1 for place in places) or not 0 < gamma <= 1:
        raise ValueError(f"milestones {places} must rise from 1 at least, and gamma {gamma} lie in (0, 1]")

    def lr(step: int) -> float:
        reached = sum(step >= place for place in places)
        return _warmed(base_lr * gamma**reached, step, warmup_steps, warmup_ratio)

    return lr


def _warmed(lr: float, step: int, warmup_steps: int, ratio: float) -> float:
    if step >= warmup_steps:
        return lr
    return lr * (1 - (1 - step / warmup_steps) * (1 - ratio))


def _check(*rates: float) -> None:
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise ValueError(f"learning rates must be finite and >= 0, got {', '.join(map(str, rates))}")


def _check_warmup(warmup_steps: int, ratio: float) -> None:
    if warmup_steps < 0 or not 0 <= ratio <= 1:
        raise ValueError(f"warmup_steps {warmup_steps} must be >= 0 and warmup_ratio {ratio} lie in [0, 1]")
