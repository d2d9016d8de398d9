"""The one training loop. It knows no task and no method by name.

Everything random in a step (dropout, hard negatives) is drawn from a seed made of (run seed, step, micro-batch, rank), and
everything random in the data from (seed, epoch, index): a resumed run needs no generator state to repeat the losses.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pela_vl.base.distributed import Ranks, barrier, gather_objects, lost_ranks_named, mean_over_ranks
from pela_vl.base.errors import UserError
from pela_vl.checkpoints.ours import Position, load_resume, save_resume
from pela_vl.methods import Method
from pela_vl.objectives.base import Objective
from pela_vl.training.backends import Backend

RESUME_FOLDER = "resume"


class Log(Protocol):
    """What the loop reports to (see logging.RunLog)."""

    def scalars(self, step: int, values: dict[str, Any]) -> None: ...
    def event(self, name: str, values: dict[str, Any], step: int | None = None) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass
class Loop:
    """What `fit` runs. batches: an iterable of one epoch's batches from where `set_position(epoch, batch)` put it.

    alpha: weight of the soft targets as a function of the optimiser step. evaluate: metrics of the model as it is, the
    best being kept by "mean", and what else is to be logged; save_model(name): writes the weights in the run's folder.
    checkpoint_every, evaluate_every: in optimiser steps, 0 for the end only. on_batch: called with every batch, to count
    unreadable images.
    """

    folder: Path
    ranks: Ranks
    backend: Backend
    objective: Objective
    method: Method
    autocast: Callable[[], Any]
    batches: Iterable[Any]
    set_position: Callable[[int, int], None]
    batches_per_epoch: int
    total_steps: int
    accumulation: int
    schedule: Callable[[int], float]
    alpha: Callable[[int], float]
    seed: int
    checkpoint_every: int
    evaluate_every: int
    save_model: Callable[[str], None]
    evaluate: Callable[[], dict[str, Any]] | None = None
    on_batch: Callable[[Any], None] = lambda batch: None
    position: Position = field(default_factory=Position)


def try_resume(loop: Loop) -> bool:
    """Load the newest resume state of the run's folder into everything; False if there is none."""
    found = load_resume(loop.folder / RESUME_FOLDER, loop.objective.module, loop.objective.companions)
    if found is None:
        return False
    optimiser, loop.position = found
    loop.backend.load_optimiser_state(optimiser)
    return True


def fit(loop: Loop, log: Log) -> Position:
    """Train to `total_steps` from `loop.position`. Returns the final position.

    Raises UserError, naming the batch's samples, when the loss is not finite, and when another rank is lost; the last
    checkpoint stays as it was.
    """
    with lost_ranks_named():
        return _fit(loop, log)


def _fit(loop: Loop, log: Log) -> Position:
    position = loop.position
    stream = _stream(loop)
    while position.step < loop.total_steps:
        started = time.perf_counter()
        samples, logged, norm = 0, None, None
        lr = loop.schedule(position.step)
        for micro in range(loop.accumulation):
            batch = next(stream)
            loop.on_batch(batch)
            batch = batch.to(loop.ranks.device)
            values = _micro_step(loop, batch, position.step, micro)
            logged = values if logged is None else {k: logged[k] + v for k, v in values.items()}
            samples += len(batch)
            # after every backward: the backend itself knows which of them ends an update
            norm = loop.backend.step(lr)
        _report(log, loop, position, logged, lr, norm, samples * loop.ranks.world, time.perf_counter() - started)
        position.step += 1
        if position.batch >= loop.batches_per_epoch:
            position.epoch, position.batch = position.epoch + 1, 0
        last = position.step >= loop.total_steps
        if loop.evaluate is not None and (last or _due(position.step, loop.evaluate_every)):
            _evaluate(loop, position, log)
        if last or _due(position.step, loop.checkpoint_every):
            checkpoint(loop)
    return position


def checkpoint(loop: Loop) -> None:
    """Write last.safetensors and the resume state. A collective: every rank calls it."""
    optimiser = loop.backend.optimiser_state()
    if loop.ranks.is_main:
        loop.save_model("last.safetensors")
        save_resume(
            loop.folder / RESUME_FOLDER, loop.objective.module, loop.objective.companions, optimiser, loop.position
        )
    barrier()


def seed_step(seed: int, step: int, micro: int, rank: int) -> None:
    """Make torch's draws of one micro-batch a function of these four numbers."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, micro, rank]).generate_state(1, np.uint64)[0] >> 1))


def _stream(loop: Loop) -> Iterator[Any]:
    """Batches across epochs from the position on, keeping the position's batch count."""
    epoch, batch = loop.position.epoch, loop.position.batch
    while True:
        loop.set_position(epoch, batch)
        for item in loop.batches:
            batch += 1
            loop.position.epoch, loop.position.batch = epoch, batch
            yield item
        epoch, batch = epoch + 1, 0


def _micro_step(loop: Loop, batch: Any, step: int, micro: int) -> dict[str, torch.Tensor]:
    """prepare -> forward -> terms -> backward -> finish; returns detached scalars by name."""
    seed_step(loop.seed, step, micro, loop.ranks.rank)
    with torch.no_grad(), loop.autocast():
        prepared = loop.objective.prepare(batch, loop.alpha(step), new_step=micro == 0)
        extra = loop.method.prepare(batch)
    try:
        output = loop.backend.forward(batch, prepared)
    except FloatingPointError as error:
        raise _not_finite(batch, step, str(error)) from None
    output.terms.update(loop.method.terms(output, extra, batch))
    loss = sum(output.terms.values())
    if not torch.isfinite(loss):
        terms = ", ".join(f"{name} {value.item():g}" for name, value in output.terms.items())
        raise _not_finite(batch, step, terms)
    loop.backend.backward(loss)
    loop.objective.finish(batch, prepared)
    values = {f"term/{name}": value.detach() for name, value in output.terms.items()}
    values.update({f"metric/{name}": value.detach() for name, value in output.metrics.items()})
    return {"loss": loss.detach(), **values}


def _not_finite(batch: Any, step: int, what: str) -> UserError:
    return UserError(
        f"the loss of step {step} is not finite ({what}); samples {batch.indices.tolist()}: look at them, lower optim.lr "
        "or set train.clip"
    )


def _report(log, loop, position, logged, lr, norm, samples, seconds) -> None:
    means = mean_over_ranks(torch.stack([value.float() for value in logged.values()])) / loop.accumulation
    values = dict(zip(logged, means.tolist(), strict=True))
    grouped: dict[str, Any] = {"loss": values.pop("loss"), "terms": {}, "metrics": {}}
    for name, value in values.items():
        kind, _, short = name.partition("/")
        grouped[f"{kind}s"][short] = value
    log.scalars(
        position.step,
        {
            "epoch": position.epoch,
            **grouped,
            "lr": lr,
            "grad_norm": norm,
            "seconds": round(seconds, 4),
            "samples_per_s": round(samples / seconds, 2),
        },
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(loop: Loop, position: Position, log: Log) -> None:
    """Evaluate, log, and keep the weights if they are the best so far by "mean"."""
    training = loop.objective.module.training
    loop.objective.module.eval()
    metrics = loop.evaluate()
    loop.objective.module.train(training)
    log.event("evaluation", metrics, position.step - 1)
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    log.say(f"step {position.step}: " + "  ".join(f"{name} {value:.2f}" for name, value in numbers.items()))
    better = position.best is None or metrics["mean"] > position.best
    if gather_objects(better)[0]:
        position.best = metrics["mean"]
        if loop.ranks.is_main:
            loop.save_model("best.safetensors")
    barrier()
