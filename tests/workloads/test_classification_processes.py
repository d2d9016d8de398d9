"""Evaluation in two processes: each does a part of the images, and both get the counts of all."""

import json
from pathlib import Path

from labelled_files import vision_settings, write_images

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


def test_two_processes_count_what_one_counts(tmp_path, forked_ranks):

    write_images(tmp_path / "train", 2, 0)
    write_images(tmp_path / "val", 3, 1)
    (tmp_path / "val/ant/0.png").unlink()  # 17 images: the parts differ in length
    settings = vision_settings(tmp_path, tmp_path / "run", train__steps=1)
    settings.model.init_std = 0.1
    _, alone = runner.train(Classification(), settings, resume=False)
    checkpoint = tmp_path / "run/best.safetensors"
    helpers = Path(__file__).parents[1] / "helpers"
    outputs = forked_ranks(CODE, 2, tmp_path, tmp_path / "two", helpers, checkpoint)
    for output in outputs:
        line = next(line for line in output.splitlines() if line.startswith("metrics "))
        assert json.loads(line.removeprefix("metrics ")) == alone
    predictions = [json.loads((tmp_path / run / "predictions_val.json").read_text()) for run in ("run", "two")]
    assert predictions[0] == predictions[1] and len(predictions[0]) == 17
