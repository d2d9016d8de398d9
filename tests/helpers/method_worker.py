"""One process of the runs of test_methods_on_processes.py: `method_worker.py jobs.json`, started by the deepspeed launcher.

All runs share one process group, which takes longer to start than a run. What a run's evaluation gives goes to
metrics.json, and what every process holds of a whitened model to factors.<process>.pt, both in the folder of jobs.json.
"""

import json
import sys
from pathlib import Path

import torch
from method_runs import TASKS, settings_of

from pela_vl.base.distributed import World, start, stop
from pela_vl.settings import Settings
from pela_vl.training import runner
from pela_vl.training.assemble import assemble


def settings_of_job(job: dict, folder: Path) -> Settings:
    made = settings_of(job["task"], job["method"], Path(job["listed"]), folder / job["name"])
    made.train.batch_size, made.train.checkpoint_every = 2, 0
    made.deepspeed.stage = job["stage"]
    return made


def whitened_factors(listed: Path, folder: Path, world: World) -> dict:
    """Of the model and its EMA model. Process 1 is given fewer samples: alone it would come to other ranks and factors."""
    made = settings_of("retrieval", "svd", listed, folder / "whitened")
    made.compress.init, made.compress.ranks, made.compress.samples = "whitened", "allocated", 12 - 6 * world.process
    trainee = assemble(TASKS["retrieval"](), made, world)
    held = {
        f"{kind}.{name}": v.clone()
        for kind, m in (("model", trainee.run.model), ("ema", trainee.step.ema.model))
        for name, v in m.state_dict().items()
    }
    if world.launched:
        trainee.backend.destroy()
    return {"plan": trainee.run.header.ranks, "weights": held}


def main() -> None:
    file = Path(sys.argv[-1])
    folder, jobs = file.parent, json.loads(file.read_text())
    torch.set_num_threads(1)
    world = start("cpu")
    runner.start = lambda *arguments: world
    runner.stop = lambda destroy=None: destroy() if destroy else None
    metrics = {}
    for job in jobs:
        _, metrics[job["name"]] = runner.train(TASKS[job["task"]](), settings_of_job(job, folder), resume=False)
    torch.save(whitened_factors(Path(jobs[0]["listed"]), folder, world), folder / f"factors.{world.process}.pt")
    if world.is_main:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    stop()


if __name__ == "__main__":
    main()
