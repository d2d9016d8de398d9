"""Every method in every fine-tuning task: it trains, its weights are evaluated, and its checkpoint builds itself again."""

import json
import math

import pytest
from method_runs import FINE_TUNING, METHODS, TASKS, settings_of

from pela_vl.checkpoints.albef import load_any
from pela_vl.lowrank import low_rank_layers
from pela_vl.settings import ModelSettings
from pela_vl.training import runner

# quick: every method once, every task at least once, merged tokens where they need places
QUICK = {
    ("full", "vqa"),
    ("lora", "entailment"),
    ("maskalign", "grounding"),
    ("pela", "grounding"),
    ("svd", "retrieval"),
    ("tinybert", "retrieval"),
    ("tome", "grounding"),
}
RUNS = [
    pytest.param(method, task, marks=() if (method, task) in QUICK else pytest.mark.slow)
    for method in METHODS
    for task in FINE_TUNING
]


def test_the_quick_ones_are_of_every_method_and_task():
    assert [{pair[i] for pair in QUICK} for i in (0, 1)] == [set(METHODS), set(FINE_TUNING)]


@pytest.mark.parametrize(("method", "task"), RUNS)
def test_two_steps_an_evaluation_and_the_checkpoint_again(every_list, tmp_path, method, task):
    workload = TASKS[task]()
    settings = settings_of(task, method, every_list, tmp_path / "run")
    settings.train.steps, settings.train.checkpoint_every = 2, 0
    position, metrics = runner.train(workload, settings, resume=False)
    assert position.step == 2
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "event" not in line]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert 0 <= metrics["test"]["mean"] <= 100

    checkpoint = str(tmp_path / "run/last.safetensors")
    model = load_any(ModelSettings(), checkpoint).model
    assert bool(low_rank_layers(model)) == (method in ("svd", "pela"))
    assert bool(model.visual_encoder.merging) == (method == "tome")
    again = settings_of(task, "full", every_list, tmp_path / "again")
    again.init.checkpoint, again.model.size = checkpoint, None
    assert runner.evaluate(workload, again)["test"] == pytest.approx(metrics["test"], abs=1e-3)
