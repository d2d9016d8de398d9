"""Every method on two processes under the deepspeed launcher, and what it leaves on one."""

import json
import math
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from launched_runs import launched
from method_runs import METHODS, TASKS, settings_of
from method_worker import whitened_factors
from tiny_runs import ONE, PATIENCE, ROOT

from pela_vl.checkpoints.albef import load_any
from pela_vl.lowrank import low_rank_layers
from pela_vl.settings import ModelSettings
from pela_vl.training import runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TERMS = {"tinybert": {"hidden", "attention"}, "maskalign": {"align"}, "pela": {"fd", "rwp"}}
OTHERS = cycle(("pretraining", "vqa", "entailment", "grounding"))
# each in retrieval and in one more task, at ZeRO 1 and 2
JOBS = [
    {"method": method, "task": task, "stage": 1 + (number + place) % 2, "name": f"{task}_{method}"}
    for number, method in enumerate(METHODS)
    for place, task in enumerate(("retrieval", next(OTHERS)))
]


@pytest.fixture(scope="module")
def trained(every_list, tmp_path_factory) -> Path:
    """The folder of one launch that runs all, one after the other in the same processes."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "jobs.json").write_text(json.dumps([job | {"listed": str(every_list)} for job in JOBS]))
    launched(2, ROOT / "tests/helpers/method_worker.py", folder / "jobs.json", patience=5 * PATIENCE)
    return folder


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["name"])
def test_a_checkpoint_of_two_ranks_loads_and_evaluates_on_one(every_list, trained, tmp_path, job):
    run, method, task = trained / job["name"], job["method"], job["task"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "event" not in line]
    assert len(steps) == 3 and all(math.isfinite(line["loss"]) for line in steps)
    assert all(isinstance(line["grad_norm"], float) and line["grad_norm"] > 0 for line in steps)
    assert all(set(line["terms"]) >= TERMS.get(method, set()) for line in steps)
    model = load_any(ModelSettings(), str(run / "last.safetensors")).model
    assert bool(low_rank_layers(model)) == (method in ("svd", "pela"))
    assert bool(model.visual_encoder.merging) == (method == "tome")
    metrics = json.loads((trained / "metrics.json").read_text())[job["name"]]
    again = settings_of(task, "full", every_list, tmp_path / "again")
    again.init.checkpoint, again.model.size = str(run / "last.safetensors"), None
    if task == "pretraining":  # which evaluates nothing itself
        again.losses.mlm = 0.0
        assert 0 <= runner.evaluate(TASKS["retrieval"](), again)["test"]["mean"] <= 100
    else:
        assert runner.evaluate(TASKS[task](), again)["test"] == pytest.approx(metrics["test"], abs=1e-3)


def test_whitened_factors_are_the_ones_of_process_0(every_list, trained, tmp_path):
    main, other = (torch.load(trained / f"factors.{rank}.pt") for rank in range(2))
    assert main["plan"] == other["plan"] and main["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(value, other["weights"][name]) for name, value in main["weights"].items())
    alone = whitened_factors(every_list, tmp_path, ONE)
    assert alone["plan"] == main["plan"]
    # by its own samples the other process would have had others
    assert whitened_factors(every_list, tmp_path, replace(ONE, process=1))["plan"] != main["plan"]
    for name, value in alone["weights"].items():
        torch.testing.assert_close(main["weights"][name], value)
