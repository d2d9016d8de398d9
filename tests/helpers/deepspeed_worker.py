"""One rank of the runs that test_backends.py compares: `python deepspeed_worker.py jobs.json`, started as a launcher does.

Each job trains (stage null: LocalBackend) and its losses and gradient norms go to <folder>/result.<name>.json.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from tiny_albef import tiny_batch
from tiny_runs import Log, make_loop

from pela_vl.base.distributed import start, stop
from pela_vl.settings import DeepSpeedSettings
from pela_vl.training.backends import DeepSpeedBackend, LocalBackend
from pela_vl.training.engine import fit, try_resume

BATCH = 3
# no hard negatives, whose draws differ by rank; and no queue, which holds one micro-batch less in one process
WEIGHTS = {"itc": 1.0, "itm": 0.0, "mlm": 1.0}


def run_job(job: dict, ranks) -> dict:
    """Train `job["steps"]` steps on global batches cut into micro-batches, by rank or by accumulation."""
    world, accumulation = ranks.world, job.get("accumulation", 1)
    backend = LocalBackend
    if job["stage"] is not None:
        backend = partial(
            DeepSpeedBackend,
            batch_size=BATCH,
            settings=DeepSpeedSettings(job["stage"], **job.get("deepspeed", {})),
            ranks=ranks,
        )
    loop = make_loop(
        Path(job["folder"]),
        WEIGHTS,
        method=job.get("method", "pela"),
        backend=backend,
        ranks=ranks,
        # micro-batch b of a rank is number b * world + rank of all: any way to cut sees the same global batches
        make_batch=lambda epoch, batch: tiny_batch(BATCH, seed=batch * world + ranks.rank),
        per_epoch=10**6,
        total_steps=job["steps"],
        accumulation=accumulation,
        clip=job.get("clip", 0.5),
        dropout=0.0,
        queue=0,
    )
    with torch.no_grad():
        loop.trainee.run.model.temp.fill_(job.get("temp", 0.07))
    if job.get("resume"):
        assert try_resume(loop)
    log = Log()
    fit(loop, log)
    state = loop.trainee.backend.optimiser_state()
    moments = {name: float(entry["exp_avg_sq"].double().sum()) for name, entry in state.items()}
    steps = sorted({float(entry["step"]) for entry in state.values()})
    weights = {name: p.double().sum().item() for name, p in loop.trainee.step.named_parameters()}
    loop.trainee.backend.destroy()
    return {
        "losses": log.losses,
        "norms": log.norms,
        "temp": [line["metrics"]["temp"] for line in log.lines],
        "moments": moments,
        "steps": steps,
        "weights": weights,
    }


def main() -> None:
    file = Path(sys.argv[1])
    torch.set_num_threads(1)
    ranks = start("cpu")
    for job in json.loads(file.read_text()):
        result = run_job(job, ranks)
        if ranks.is_main:
            (file.parent / f"result.{job['name']}.json").write_text(json.dumps(result))
    stop()


if __name__ == "__main__":
    main()
