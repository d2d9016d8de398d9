"""One process of the runs that test_backends.py compares: `python deepspeed_worker.py jobs.json`, started as a launcher does.

Each job trains (stage null: LocalBackend) and its losses and gradient norms go to <folder>/result.<name>.json.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tiny_albef import tiny_batch
from tiny_runs import Log, make_loop

from pela_vl.base.distributed import start, stop
from pela_vl.base.errors import UserError
from pela_vl.data.collate import Batch
from pela_vl.settings import DeepSpeedSettings
from pela_vl.training.backends import DeepSpeedBackend, LocalBackend
from pela_vl.training.engine import fit, try_resume

BATCH = 3
# no hard negatives, whose draws differ by rank; and no queue, which holds one micro-batch less in one process
WEIGHTS = {"itc": 1.0, "itm": 0.0, "mlm": 1.0}


def run_job(job: dict, world) -> dict:
    """Train `job["steps"]` steps on global batches cut into micro-batches, by rank or by accumulation."""
    size, accumulation = world.size, job.get("accumulation", 1)
    backend = LocalBackend
    if job["stage"] is not None:
        backend = partial(
            DeepSpeedBackend,
            batch_size=BATCH,
            settings=DeepSpeedSettings(job["stage"], **job.get("deepspeed", {})),
            world=world,
        )
    loop = make_loop(
        Path(job["folder"]),
        WEIGHTS,
        method=job.get("method", "pela"),
        backend=backend,
        world=world,
        # micro-batch b of a process is number b * world + rank of all: any way to cut sees the same global batches
        make_batch=lambda epoch, batch: batch_of(batch * size + world.process, world.process),
        per_epoch=10**6,
        total_steps=job["steps"],
        accumulation=accumulation,
        clip=job.get("clip", 0.5),
        dropout=0.0,
        queue=0,
        checkpoint_every=job.get("checkpoint_every", 0),
    )
    with torch.no_grad():
        loop.trainee.run.model.temp.fill_(job.get("temp", 0.07))
    if job.get("resume"):
        assert try_resume(loop)
    if "poison" in job:
        poison(loop, **job["poison"])
    log, error = Log(), None
    try:
        fit(loop, log)
    except UserError as problem:
        error = str(problem)
    state = loop.trainee.backend.optimiser_state()
    moments = {name: float(entry["exp_avg_sq"].double().sum()) for name, entry in state.items()}
    steps = sorted({float(entry["step"]) for entry in state.values()})
    weights = {name: p.double().sum().item() for name, p in loop.trainee.step.named_parameters()}
    config = engine_config(loop.trainee.backend) if "deepspeed" in job else None
    loop.trainee.backend.destroy()
    return {
        "error": error,
        "config": config,
        "losses": log.losses,
        "norms": log.norms,
        "temp": [line["metrics"]["temp"] for line in log.lines],
        "moments": moments,
        "steps": steps,
        "weights": weights,
    }


def batch_of(number: int, process: int) -> Batch:
    """Batch `number` of all processes, whose samples 100, 101, ... are 110, 111, ... in the second process."""
    made = tiny_batch(BATCH, seed=number)
    return replace(made, indices=made.indices + 10 * process)


def poison(loop, step: int, process: int) -> None:
    """Make the gradient of one weight infinite in one step of one process, which leaves the losses finite."""

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        here = loop.position.step == step and loop.world.process == process
        return gradient * float("inf") if here else gradient

    loop.trainee.run.model.text_proj.weight.register_hook(spoil)


def engine_config(backend: DeepSpeedBackend) -> dict:
    """What DeepSpeed itself made of the settings."""
    engine, zero = backend.engine, backend.engine.optimizer
    return {
        "reduce_bucket": [engine.zero_reduce_bucket_size(), zero.reduce_bucket_size],
        "allgather_bucket": [engine.zero_allgather_bucket_size(), zero.allgather_bucket_size],
        "overlap": [engine.zero_overlap_comm(), zero.overlap_comm],
        "round_robin": zero.round_robin_gradients,
        "stage": engine.zero_optimization_stage(),
        "steps_per_print": engine.steps_per_print(),
    }


def main() -> None:
    file = Path(sys.argv[1])
    torch.set_num_threads(1)
    world = start("cpu")
    for job in json.loads(file.read_text()):
        result = run_job(job, world)
        if world.is_main:
            (file.parent / f"result.{job['name']}.json").write_text(json.dumps(result))
    stop()


if __name__ == "__main__":
    main()
