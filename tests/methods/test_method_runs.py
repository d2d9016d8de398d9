"""Runs of every method from settings, on every task: killed, gone on with, and their checkpoints."""

import json

import pytest
from method_runs import TASKS, settings_of

from pela_vl.checkpoints.albef import load_any
from pela_vl.checkpoints.ours import read_header
from pela_vl.lowrank import low_rank_layers
from pela_vl.settings import ModelSettings
from pela_vl.training import engine, runner
from pela_vl.workloads.pretraining import Pretraining
from pela_vl.workloads.retrieval import Retrieval

TERMS = {"tinybert": {"hidden", "attention"}, "maskalign": {"align"}, "pela": {"fd", "rwp"}}
QUICK = (("pretraining", "maskalign"), ("retrieval", "lora"))
RUNS = [
    pytest.param(task, method, marks=() if (task, method) in QUICK else pytest.mark.slow)
    for task, more in (("pretraining", ()), ("retrieval", ()), ("entailment", ("pela",)), ("vqa", ("pela",)))
    for method in ("lora", "svd", "tinybert", "maskalign", "tome", *more)
]


@pytest.mark.parametrize(("task", "method"), RUNS)
def test_a_killed_run_goes_on_bit_by_bit_and_its_checkpoint_builds_itself(
    every_list, tmp_path, monkeypatch, task, method
):
    workload = TASKS[task]()
    settings = settings_of(task, method, every_list, tmp_path / "whole")
    _, metrics = runner.train(workload, settings, resume=False)
    killed = settings_of(task, method, every_list, tmp_path / "killed")
    save, calls = engine.save_model, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "save_model", dying)
        runner.train(workload, killed, resume=False)
    assert runner.train(workload, killed, resume=True)[1] == metrics
    files = [folder / "last.safetensors" for folder in (tmp_path / "whole", tmp_path / "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert all(set(line["terms"]) >= TERMS.get(method, set()) for line in lines if "event" not in line)

    loaded = load_any(ModelSettings(), str(files[0]))
    assert not any(name.startswith("method.") or "lora" in name for name in loaded.model.state_dict())
    config = read_header(files[0]).config
    if method in ("tinybert", "maskalign"):
        assert (config.vision_depth, config.text_depth, config.fusion_layer) == (1, 2, 1)
    if method == "tome":
        assert loaded.model.visual_encoder.merging == (1, 1)
        assert load_any(ModelSettings(token_merging=0), str(files[0])).model.visual_encoder.merging == ()
    assert bool(low_rank_layers(loaded.model)) == (method in ("svd", "pela"))
    if metrics:
        again = settings_of(task, "full", every_list, tmp_path / "again")
        again.init.checkpoint, again.model.size = str(files[0]), None
        assert runner.evaluate(workload, again)["test"] == pytest.approx(metrics["test"], abs=1e-3)


@pytest.mark.slow
def test_pela_and_token_merging_combine(every_list, tmp_path):
    settings = settings_of("pretraining", "pela", every_list, tmp_path / "run")
    settings.model.token_merging = [2, 0]
    runner.train(Pretraining(), settings, resume=False)
    loaded = load_any(ModelSettings(), str(tmp_path / "run/last.safetensors"))
    assert loaded.model.visual_encoder.merging == (2, 0) and low_rank_layers(loaded.model)
    # and the small model starts the next stage as it is
    settings = settings_of("retrieval", "full", every_list, tmp_path / "next")
    settings.init.checkpoint, settings.model.size = str(tmp_path / "run/last.safetensors"), None
    runner.train(Retrieval(), settings, resume=False)
    assert read_header(tmp_path / "next/last.safetensors").config.token_merging == (2, 0)
