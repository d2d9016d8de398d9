"""The one training loop. It knows no task and no method by name.

Everything random in a step (dropout, hard negatives) is drawn from a seed made of (run seed, step, micro-batch, process).
Everything random in the data is drawn from (seed, epoch, index). So a resumed run repeats the losses without any stored
generator state.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pela_vl.base.distributed import (
    World,
    barrier,
    broadcast_state,
    from_main,
    gather_objects,
    lost_processes_named,
    mean_over_processes,
)
from pela_vl.base.errors import UserError
from pela_vl.base.files import recover_folder
from pela_vl.checkpoints.ours import save_model
from pela_vl.checkpoints.resume import Position, load_resume, save_resume
from pela_vl.training.assemble import Trainee

RESUME_FOLDER = "resume"


class Log(Protocol):
    """What the loop reports to (see run_log.RunLog)."""

    def scalars(self, step: int, values: dict[str, Any]) -> None: ...
    def event(self, name: str, values: dict[str, Any], step: int | None = None) -> None:
        """Record something that is no training step.

        Args:
            name: What happened, such as "evaluation".
            values: Numbers, strings, lists or named groups of these.
            step: Optimiser step that it belongs to; None for the latest one.
        """

    def say(self, line: str) -> None: ...


@dataclass
class Loop:
    """What `fit` runs.

    Args:
        folder: The run's.
        trainee: Model, training step, method and back end.
        batches: An iterable of one epoch's batches from where `set_position` put it.
        set_position: set_position(epoch, batch).
        batches_per_epoch: Of this process.
        global_batch: Samples of a batch of all processes.
        total_steps: Optimiser steps of the run.
        accumulation: Backward passes an optimiser step.
        schedule: Learning rate of an optimiser step.
        alpha: Weight of the soft targets at an optimiser step.
        seed: Of everything random in a step.
        checkpoint_every: Optimiser steps between checkpoints; 0 for the end only.
        evaluate_every: Optimiser steps between evaluations; 0 for the end only.
        evaluate: Metrics of the model as it is, the best being kept by "mean", and what else is to be logged; None for no
            evaluation.
        on_batch: Called with every batch, to count unreadable images.
        on_device: Gives a batch that was moved to the device as the step reads it: its images are normalised there.
        position: Where the run stands.
    """

    folder: Path
    trainee: Trainee
    batches: Iterable[Any]
    set_position: Callable[[int, int], None]
    batches_per_epoch: int
    global_batch: int
    total_steps: int
    accumulation: int
    schedule: Callable[[int], float]
    alpha: Callable[[int], float]
    seed: int
    checkpoint_every: int
    evaluate_every: int
    evaluate: Callable[[], dict[str, Any]] | None = None
    on_batch: Callable[[Any], None] = lambda batch: None
    on_device: Callable[[Any], Any] = lambda batch: batch
    position: Position = field(default_factory=Position)

    @property
    def world(self) -> World:
        """This process and the others."""
        return self.trainee.run.world

    def save_model(self, name: str) -> None:
        """Write the weights into the run's folder."""
        save_model(self.folder / name, self.trainee.weights(), self.trainee.run.header)


def try_resume(loop: Loop) -> bool:
    """Load the newest resume state of the run's folder into everything; False if there is none.

    Process 0 decides whether there is one: a file system may show it to some processes later than to others.

    Raises:
        UserError: In every process, if one does not see the state or an optimiser step of the run had another number of
            samples, see `Position.cut_anew`.
    """
    folder = loop.folder / RESUME_FOLDER
    if not from_main(lambda: recover_folder(folder)):
        return False
    found = load_resume(folder, loop.trainee.step)
    blind = [number for number, sees in enumerate(gather_objects(found is not None)) if not sees]
    if blind:
        raise UserError(f"process {blind[0]} does not see {folder}, which process 0 sees; put it on a shared disk")
    assert found is not None  # every process sees the state
    optimiser, position = found
    loop.position = position.cut_anew(loop.global_batch, loop.accumulation, loop.batches_per_epoch)
    loop.trainee.backend.load_optimiser_state(optimiser)
    broadcast_state(loop.trainee.step)
    return True


def fit(loop: Loop, log: Log) -> Position:
    """Train to `total_steps` from `loop.position`. Returns the final position.

    Raises:
        UserError: Naming the samples when a loss or a gradient is not finite, and when another process is lost; the last
            checkpoint stays as it was.
    """
    with lost_processes_named():
        return _fit(loop, log)


def _fit(loop: Loop, log: Log) -> Position:
    position = loop.position
    position.global_batch, position.accumulation = loop.global_batch, loop.accumulation
    stream = _stream(loop)
    while position.step < loop.total_steps:
        started = time.perf_counter()
        samples, norm = 0, None
        indices: list[list[int]] = []
        values: list[dict[str, torch.Tensor]] = []
        lr = loop.schedule(position.step)
        for micro in range(loop.accumulation):
            batch = next(stream)
            loop.on_batch(batch)
            samples += len(batch)
            indices.append(batch.indices.tolist())  # before the move: reading them would wait for the device
            batch = batch.to(loop.world.device, non_blocking=loop.world.device.type == "cuda")
            values.append(_micro_step(loop, loop.on_device(batch), position.step, micro))
            # after every backward: the back end itself knows which of them ends an update
            norm = loop.trainee.backend.step(lr)
        means = _read(values, indices, position.step, norm)
        loop.trainee.step.after_update()
        _report(log, loop, means, lr, norm, samples * loop.world.size, time.perf_counter() - started)
        position.step += 1
        if position.batch >= loop.batches_per_epoch:
            position.epoch, position.batch = position.epoch + 1, 0
        last = position.step >= loop.total_steps
        if loop.evaluate is not None and (last or _due(position.step, loop.evaluate_every)):
            _evaluate(loop, log)
        if last or _due(position.step, loop.checkpoint_every):
            checkpoint(loop)
    return position


def checkpoint(loop: Loop) -> None:
    """Write last.safetensors and the resume state. A collective: every process calls it."""
    optimiser = loop.trainee.backend.optimiser_state()
    if loop.world.is_main:
        loop.save_model("last.safetensors")
        save_resume(loop.folder / RESUME_FOLDER, loop.trainee.step, optimiser, loop.position)
    barrier()


def seed_step(seed: int, step: int, micro: int, process: int) -> None:
    """Seed torch's generators, so that all draws of one micro-batch are a function of these four numbers.

    Args:
        seed: Of the run.
        step: Optimiser step, from 0.
        micro: Which backward pass of the optimiser step, from 0.
        process: Number of this process, so that processes draw differently.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, micro, process]).generate_state(1, np.uint64)[0] >> 1))


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
    """prepare -> forward -> terms -> backward -> after_backward. Nothing is read on the host.

    Args:
        loop: The loop.
        batch: On the device.
        step: Optimiser step.
        micro: Which of the optimiser step's batches this is.

    Returns:
        Detached scalars by name.
    """
    trainee = loop.trainee
    seed_step(loop.seed, step, micro, loop.world.process)
    with torch.no_grad(), trainee.run.autocast():
        prepared = trainee.step.prepare(batch, loop.alpha(step), first=micro == 0)
        prepared_terms = trainee.method.prepare(batch)
    output = trainee.backend.forward(batch, prepared)
    output.terms.update(trainee.method.terms(output.features, prepared_terms))
    del prepared_terms
    loss = torch.stack([value.float() for value in output.terms.values()]).sum()
    values = {"loss": loss.detach(), **{f"term/{name}": value.detach() for name, value in output.terms.items()}}
    values |= {f"watched/{name}": value for name, value in output.watched.items()}
    values |= {f"metric/{name}": value.detach() for name, value in output.metrics.items()}
    del output  # with the hidden states
    trainee.backend.backward(loss)
    trainee.step.after_backward(batch, prepared)
    return values


def _read(
    values: list[dict[str, torch.Tensor]], indices: list[list[int]], step: int, norm: float | None
) -> dict[str, float]:
    """Means of a step's scalars over batches and processes; the one place that waits for the device, but for the norm.

    Args:
        values: Scalars of every batch of the step, by name.
        indices: Samples of every batch.
        step: Optimiser step.
        norm: Of the gradients.

    Raises:
        UserError: In every process, if a loss or the gradient of any of them is not finite.
    """
    names = list(values[0])
    scalars = torch.stack([value.float() for batch in values for value in batch.values()]).view(len(values), -1)
    means = mean_over_processes(scalars.mean(0))
    *rows, found = torch.cat([scalars, means[None]]).tolist()
    is_loss = [not name.startswith("metric/") for name in names]
    if not all(math.isfinite(value) for value, counts in zip(found, is_loss, strict=True) if counts):
        raise _not_finite(gather_objects(_bad_rows(names, rows, indices)), step)
    if norm is not None and not math.isfinite(norm):
        raise _bad_gradient(gather_objects(sum(indices, [])), step, norm)
    return dict(zip(names, found, strict=True))


def _bad_rows(names: list[str], rows: list[list[float]], indices: list[list[int]]) -> list[tuple[str, list[int]]]:
    """Of the batches of this process whose losses are not finite: their terms and watched values, and their samples."""
    bad = []
    for row, samples in zip(rows, indices, strict=True):
        losses = {
            name.partition("/")[2]: v for name, v in zip(names, row, strict=True) if name[:5] in ("term/", "watch")
        }
        if not math.isfinite(row[0]) or not all(map(math.isfinite, losses.values())):
            bad.append((", ".join(f"{name} {value:g}" for name, value in losses.items()), samples))
    return bad


def _not_finite(found: list[list[tuple[str, list[int]]]], step: int) -> UserError:
    """found: `_bad_rows` of every process."""
    bad = [entry for process in found for entry in process]
    what = (
        "; ".join(f"{terms}; samples {samples}" for terms, samples in bad[:3]) or "the sum over the processes overflows"
    )
    return UserError(f"the loss of step {step} is not finite ({what}): look at them, lower optim.lr or set train.clip")


def _bad_gradient(indices: list[list[int]], step: int, norm: float) -> UserError:
    """The error of a gradient that is not finite.

    Args:
        indices: Samples of the optimiser step, by process.
        step: Optimiser step.
        norm: Of the gradient.
    """
    samples = sorted({index for part in indices for index in part})
    return UserError(
        f"the gradient of step {step} is not finite (norm {norm:g}), though its losses are; nothing was updated. Samples "
        f"{samples}: look at them, lower optim.lr, or train in fp32 (train.precision)"
    )


def _report(
    log: Log,
    loop: Loop,
    means: dict[str, float],
    lr: float,
    norm: float | None,
    samples: int,
    seconds: float,
) -> None:
    """Log an optimiser step.

    Args:
        log: Where to.
        loop: The loop.
        means: The step's scalars.
        lr: Learning rate.
        norm: Of the gradients.
        samples: Of all processes.
        seconds: That the step took.
    """
    grouped: dict[str, Any] = {"loss": means["loss"], "terms": {}, "metrics": {}}
    for name, value in means.items():
        kind, _, short = name.partition("/")
        if kind in ("term", "metric"):
            grouped[f"{kind}s"][short] = value
    log.scalars(
        loop.position.step,
        {
            "epoch": loop.position.epoch,
            **grouped,
            "lr": lr,
            "grad_norm": norm,
            "seconds": round(seconds, 4),
            "samples_per_s": round(samples / seconds, 2),
        },
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(loop: Loop, log: Log) -> None:
    """Evaluate, log, and keep the weights if they are the best so far by "mean"."""
    assert loop.evaluate is not None
    position, step = loop.position, loop.trainee.step
    training = step.training
    step.eval()
    metrics = loop.evaluate()
    step.train(training)
    log.event("evaluation", metrics, position.step - 1)
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    log.say(f"step {position.step}: " + "  ".join(f"{name} {value:.2f}" for name, value in numbers.items()))
    if from_main(lambda: position.best is None or metrics["mean"] > position.best):
        position.best = metrics["mean"]
        if loop.world.is_main:
            loop.save_model("best.safetensors")
    barrier()
