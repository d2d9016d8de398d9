"""tasks/segment.py killed at any moment, and in two processes under the deepspeed launcher."""

import json

import pytest
from killed_runs import run_whole_and_killed
from launched_runs import launched
from segmented_files import segmentation_settings, write_ade

from pela_vl.base import config
from pela_vl.training import runner
from pela_vl.workloads.segmentation import Segmentation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    ade = write_ade(tmp_path / "ade")
    settings = segmentation_settings(ade, tmp_path / "run", train__steps=40, train__batch_size=2, data__workers=2)
    settings.train.accumulation, settings.train.checkpoint_every = 2, 3
    config.dump_yaml(settings, tmp_path / "run.yaml")
    killed, losses = run_whole_and_killed(
        "tasks/segment.py", tmp_path / "run.yaml", tmp_path, (4, 16, 28), 8, ("last.safetensors",)
    )
    assert len(losses) == 40 and "mIoU" in json.loads((killed / "evaluation.json").read_text())["metrics"]


def test_pela_under_the_deepspeed_launcher_is_evaluated_as_one_process_does(tmp_path):
    ade = write_ade(tmp_path / "ade")
    dense = segmentation_settings(ade, tmp_path / "dense", train__steps=1)
    runner.train(Segmentation(), dense, resume=False)
    settings = segmentation_settings(ade, tmp_path / "run", train__batch_size=2)
    settings.model.size, settings.model.overrides, settings.model.init_std = None, {}, None
    settings.init.checkpoint, settings.method.name = str(tmp_path / "dense/last.safetensors"), "pela"
    settings.compress.kappa, settings.losses.fd, settings.losses.rwp = 1.5, 0.1, 0.1
    config.dump_yaml(settings, tmp_path / "run.yaml")
    launched(2, "tasks/segment.py", "--config", tmp_path / "run.yaml")
    record = json.loads((tmp_path / "run/evaluation.json").read_text())
    alone = segmentation_settings(ade, tmp_path / "alone")
    alone.model.size, alone.model.overrides, alone.init.checkpoint = None, {}, record["checkpoint"]
    assert runner.evaluate(Segmentation(), alone)["val"] == record["metrics"]
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert set(entries[0]["terms"]) == {"ce", "auxiliary", "fd", "rwp"}
