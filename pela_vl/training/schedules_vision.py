"""Learning rates of the vision recipes as pure functions of the optimiser's step: cosine by the epoch, poly, and steps."""

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def cosine_by_epoch(
    base_lr: float, min_lr: float, warmup_lr: float, warmup_epochs: int, epochs: int, steps_per_epoch: int
) -> Schedule:
    """timm's cosine schedule at the epoch's number: the rate of a whole epoch is one value.

    It rises linearly from `warmup_lr` over the first `warmup_epochs`. From there on it is the half cosine from `base_lr` at
    epoch 0 to `min_lr` at `epochs`: the warm-up takes the place of the cosine's start, as in timm. Raises ValueError for
    numbers that make no schedule.
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
    """mmseg's polynomial decay from `base_lr` to `min_lr`: (base - min) (1 - step / total)^power + min.

    In the first `warmup_steps` that value is multiplied by a factor that rises linearly from `warmup_ratio` to 1. Raises
    ValueError for numbers that make no schedule.
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
    """mmdet's step decay: `base_lr` times `gamma` for every milestone (in steps) that was reached.

    Warm-up as in `poly`. Raises ValueError for numbers that make no schedule.
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
