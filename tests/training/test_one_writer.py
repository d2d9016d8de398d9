"""One writer a run folder, through the runner and the scripts; and a fresh run never reports the weights of an older one."""

import json
import os

import pytest
from method_runs import settings_of

from pela_vl.base.run_folder import hold_run_folder
from pela_vl.training import runner
from pela_vl.workloads.retrieval import Retrieval

SCRIPT = """
import runpy, sys
from pela_vl.base import run_folder
run_folder._PATIENCE = 0.2
sys.argv = ["tasks/retrieval.py", *sys.argv[1:]]
try:
    runpy.run_path("tasks/retrieval.py", run_name="__main__")
except SystemExit as end:
    print("exit code", end.code)
"""


def contents(folder):
    """Every file below the folder with its content and the number that the file system gave it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in files}


def test_a_live_run_is_not_started_resumed_or_evaluated_into(every_list, tmp_path, forked_processes):
    settings = settings_of("retrieval", "full", every_list, tmp_path / "run")
    settings.train.steps = 2
    runner.train(Retrieval(), settings, resume=False)
    config, run = str(tmp_path / "run/config.yaml"), tmp_path / "run"
    with hold_run_folder(run):
        before = contents(run)
        assert {"log.jsonl", ".lock"} < before.keys() and any(name.startswith("tensorboard/") for name in before)
        for more in ([], ["--resume"], ["--evaluate", "--set", f"init.checkpoint={run / 'last.safetensors'}"]):
            (output,) = forked_processes(SCRIPT, 1, "--config", config, *more)
            lines = [line for line in output.splitlines() if line.startswith(("error", "Traceback"))]
            assert len(lines) == 1 and f"another process (process {os.getpid()} on " in lines[0], output
            assert "is writing into this run" in lines[0] and output.rstrip().endswith("exit code 2"), output
            assert contents(run) == before


def test_a_fresh_run_over_old_weights_reports_its_own(every_list, tmp_path):
    """The old run kept a best by validation; the new one has no validation, so its last weights are the ones to test."""
    settings = settings_of("retrieval", "full", every_list, tmp_path / "run")
    settings.data.val, settings.train.steps = settings.data.test, 2
    runner.train(Retrieval(), settings, resume=False)
    run = tmp_path / "run"
    old = {name: (run / name).read_bytes() for name in ("best.safetensors", "last.safetensors")}
    for file in (run / "resume").iterdir():
        file.unlink()
    (run / "resume").rmdir()
    settings.data.val, settings.train.seed = None, 7
    _, metrics = runner.train(Retrieval(), settings, resume=False)
    recorded = json.loads((run / "evaluation.json").read_text())
    assert recorded["checkpoint"] == str(run / "last.safetensors") and recorded["metrics"] == metrics["test"]
    assert not (run / "best.safetensors").exists()
    assert (run / "last.safetensors").read_bytes() not in old.values()


def test_a_fresh_run_that_stops_early_leaves_no_weights_of_the_old_one(every_list, tmp_path, monkeypatch):
    settings = settings_of("retrieval", "full", every_list, tmp_path / "run")
    settings.train.checkpoint_every = 0
    run = tmp_path / "run"
    run.mkdir()
    for name in ("best.safetensors", "last.safetensors"):
        (run / name).write_bytes(b"old")

    def die(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "fit", die)
    with pytest.raises(KeyboardInterrupt):
        runner.train(Retrieval(), settings, resume=False)
    assert not list(run.glob("*.safetensors"))
