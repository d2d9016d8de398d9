"""PELA's recovery for any pair of modules: feature distillation (FD) with regularised weight perturbation (RWP), no labels.

Shapes: B = samples of a batch.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pela_vl.lowrank import Features, PlanError, low_rank_layers, pivoted_layers
from pela_vl.lowrank.sensitivity import model_features
from pela_vl.recovery.perturbation import Perturbation

Report = Callable[[int, int, float], None]
"""Called as progress(done, steps, loss) after each step."""


def recover(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    features: Features | None = None,
    steps: int = 1000,
    rate: float = 1e-4,
    rwp: float = 0.0,
    epsilon: float = 0.1,
    warmup: int = 20,
    progress: Report | None = None,
    state: str | os.PathLike[str] | None = None,
    save_every: int = 100,
    seed: int = 0,
) -> nn.Module:
    """Train a compressed `student` IN PLACE towards its dense teacher's features, on unlabelled batches; return it.

    The loss is the mean squared distance of the features, each divided by the mean square of the teacher's. Where rwp is not 0, it
    adds rwp times the mean over the low-rank layers of (max |up down - W| - epsilon)^2. The teacher runs in eval mode without
    gradients. The optimiser is AdamW without weight decay, with a linear warm-up, a cosine to 0, and gradients clipped at norm 1.

    A resumed run repeats the first one only if the batches come in the same order. Use samples beyond those of the calibration:
    on these alone, next to nothing is gained over the sequential step.

    Args:
        student: The compressed model.
        teacher: The dense model that it was made from.
        batches: Items as a calibration has them (`calibrate`), gone through again and again; or a function that gives a pass.
        features: features(model, item) gives a tensor or several; None: the model's pooled output (`model_features`).
        steps: Optimiser steps in all.
        rate: Peak learning rate.
        rwp: Weight of RWP (`pela_vl.recovery.perturbation`); 0 computes none.
        epsilon: Of RWP, in units of the weights.
        warmup: Steps of linear warm-up.
        progress: Called as progress(done, steps, loss) after each step.
        state: File for weights, optimiser and step; a run that finds it goes on from there. None writes none.
        save_every: Steps between two writes of `state`.
        seed: Of dropout.

    Raises:
        PlanError: When student and teacher are one module, features differ in number or shape, there are no batches, the loss
            is not finite, or `state` is of another run.
    """
    if student is teacher:
        raise PlanError(
            "recover: student and teacher are the same module: copy.deepcopy the model before it is compressed"
        )
    features = features or model_features
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not parameters:
        raise PlanError("recover: no parameter of the student wants a gradient")
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _schedule(step, warmup, steps))
    perturbation = Perturbation(low_rank_layers(student), _originals(student, teacher)) if rwp else None
    if rwp and pivoted_layers(student):
        raise PlanError("recover: rwp compares up @ down with the dense weight; pivoted layers have none: use rwp=0")
    done = _resume(student, optimiser, schedule, state, steps)
    torch.manual_seed(seed)
    modes = {module: module.training for model in (student, teacher) for module in model.modules()}
    teacher.eval()
    student.train()
    try:
        for number, item in enumerate(_endless(batches)):
            if done >= steps:
                break
            if number < done:  # the interrupted run has trained on it
                continue
            with torch.no_grad():
                targets = _tensors(features(teacher, item))
            loss = feature_loss(_tensors(features(student, item)), targets)
            if perturbation is not None:
                loss = loss + rwp * perturbation.penalty(epsilon, "released")
            if not torch.isfinite(loss):
                raise PlanError(f"recover: the loss is not finite at step {done + 1}: lower the rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            done += 1
            if state is not None and (done % save_every == 0 or done == steps):
                _write(student, optimiser, schedule, state, done, steps)
            if progress is not None:
                progress(done, steps, float(loss.detach()))
    finally:
        for module, training in modes.items():
            module.training = training
    return student


def feature_loss(found: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Sum over the features of |f - f'|^2 / |f'|^2 of a batch. Raises PlanError where they do not pair."""
    shapes = [tuple(part.shape) for part in found], [tuple(part.shape) for part in targets]
    if shapes[0] != shapes[1]:
        raise PlanError(f"recover: the student's features have shapes {shapes[0]}, the teacher's {shapes[1]}")
    pairs = zip(found, targets, strict=True)
    return reduce(
        torch.add,
        (
            (feature.float() - target.float()).square().mean() / target.float().square().mean().clamp_min(1e-12)
            for feature, target in pairs
        ),
    )


def _tensors(found: Any) -> list[Tensor]:
    parts = [found] if isinstance(found, Tensor) else list(found) if isinstance(found, tuple | list) else []
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise PlanError(
            f"recover: features must be tensors, not a {type(found).__name__}: give features=function(model, item)"
        )
    return parts


def _schedule(step: int, warmup: int, steps: int) -> float:
    rise = min(1.0, (step + 1) / max(warmup, 1))
    return rise * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(step / max(steps, 1), 1.0))).item())


def _endless(batches: Iterable[Any] | Callable[[], Iterable[Any]]) -> Iterator[Any]:
    given = batches if callable(batches) or hasattr(batches, "__len__") else list(batches)
    while True:
        empty = True
        for item in given() if callable(given) else given:
            empty = False
            yield item
        if empty:
            raise PlanError("recover: there are no batches")


def _originals(student: nn.Module, teacher: nn.Module) -> dict[str, Tensor]:
    """The teacher's weights of the student's low-rank layers. Raises PlanError where it has none."""
    found = {}
    for name, layer in low_rank_layers(student).items():
        weight = dict(teacher.named_parameters()).get(f"{name}.weight")
        if weight is None or tuple(weight.shape) != (layer.out_features, layer.in_features):
            raise PlanError(f"recover: rwp finds no weight of {name} in the teacher")
        found[name] = weight.detach()
    return found


def _write(student: nn.Module, optimiser: Any, schedule: Any, state: Any, done: int, steps: int) -> None:
    path = Path(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    content = {"done": done, "steps": steps, "model": student.state_dict()}
    torch.save(content | {"optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}, partial)
    os.replace(partial, path)


def _resume(student: nn.Module, optimiser: Any, schedule: Any, state: Any, steps: int) -> int:
    if state is None or not Path(state).is_file():
        return 0
    kept = torch.load(state, map_location="cpu", weights_only=True)
    if kept["steps"] != steps:
        raise PlanError(
            f"recover: {state} is of a run of {kept['steps']} steps, not {steps}: remove it, or ask for as many"
        )
    try:
        student.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
    except (RuntimeError, ValueError) as error:
        raise PlanError(f"recover: {state} is of another model: {str(error).splitlines()[0]}") from None
    schedule.load_state_dict(kept["schedule"])
    return kept["done"]
