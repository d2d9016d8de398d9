"""Image classification in two processes: each evaluates a part of the images, and both get the counts of all."""

import json
from pathlib import Path

import pytest
from labelled_files import vision_settings, write_images
from launched_runs import launched

from pela_vl.base import config
from pela_vl.training import runner
from pela_vl.workloads.classification import Classification

CODE = """
import json, sys
import torch
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from labelled_files import vision_settings
from pela_vl.training import runner
from pela_vl.workloads.classification import Classification
settings = vision_settings(Path(sys.argv[1]), Path(sys.argv[2]))
settings.model.size, settings.model.overrides = None, {}
settings.init.checkpoint = sys.argv[4]
print("metrics " + json.dumps(runner.evaluate(Classification(), settings)))
"""


@pytest.mark.slow
def test_two_processes_count_what_one_counts(tmp_path, forked_processes):

    write_images(tmp_path / "train", 2, 0)
    write_images(tmp_path / "val", 3, 1)
    (tmp_path / "val/ant/0.png").unlink()  # 17 images: the parts differ in length
    settings = vision_settings(tmp_path, tmp_path / "run", train__steps=1)
    settings.model.init_std = 0.1
    _, alone = runner.train(Classification(), settings, resume=False)
    checkpoint = tmp_path / "run/best.safetensors"
    helpers = Path(__file__).parents[1] / "helpers"
    outputs = forked_processes(CODE, 2, tmp_path, tmp_path / "two", helpers, checkpoint)
    for output in outputs:
        line = next(line for line in output.splitlines() if line.startswith("metrics "))
        assert json.loads(line.removeprefix("metrics ")) == alone
    predictions = [json.loads((tmp_path / run / "predictions_val.json").read_text()) for run in ("run", "two")]
    assert predictions[0] == predictions[1] and len(predictions[0]) == 17


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pela_under_the_deepspeed_launcher_is_evaluated_as_one_process_does(tmp_path):
    write_images(tmp_path / "train", 4, 0)
    write_images(tmp_path / "val", 3, 1)
    dense = vision_settings(tmp_path, tmp_path / "dense", train__steps=1)
    dense.model.init_std = 0.1
    runner.train(Classification(), dense, resume=False)
    settings = vision_settings(tmp_path, tmp_path / "run", train__batch_size=2, train__ema=0.9, losses__logits=0.5)
    settings.model.size, settings.model.overrides = None, {}
    settings.init.checkpoint, settings.method.name = str(tmp_path / "dense/last.safetensors"), "pela"
    settings.compress.kappa, settings.losses.fd, settings.losses.rwp = 1.5, 0.1, 0.1
    config.dump_yaml(settings, tmp_path / "run.yaml")
    launched(2, "tasks/classify.py", "--config", tmp_path / "run.yaml")
    record = json.loads((tmp_path / "run/evaluation.json").read_text())
    alone = vision_settings(tmp_path, tmp_path / "alone")
    alone.model.size, alone.model.overrides, alone.init.checkpoint = None, {}, record["checkpoint"]
    assert runner.evaluate(Classification(), alone)["val"] == record["metrics"]
    terms = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])["terms"]
    assert set(terms) == {"ce", "fd", "rwp", "logits"}
