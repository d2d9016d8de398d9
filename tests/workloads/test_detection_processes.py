"""Detection in two processes: each looks at a part of the images, and both get the detections and the AP of all."""

import json
from pathlib import Path

import pytest
from coco_files import detection_settings, write_coco

from pela_vl.training import runner
from pela_vl.workloads.detection import Detection

CODE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from coco_files import detection_settings
from pela_vl.training import runner
from pela_vl.workloads.detection import Detection
settings = detection_settings(Path(sys.argv[1]), Path(sys.argv[2]))
settings.model.size, settings.model.overrides = None, {}
settings.init.checkpoint = sys.argv[4]
print("metrics " + json.dumps(runner.evaluate(Detection(), settings)))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, forked_processes):
    write_coco(tmp_path, 6, 0, "train.json")
    write_coco(tmp_path, 5, 1, "val.json")
    settings = detection_settings(tmp_path, tmp_path / "run", train__steps=1)
    _, alone = runner.train(Detection(), settings, resume=False)
    checkpoint = tmp_path / "run/best.safetensors"
    helpers = Path(__file__).parents[1] / "helpers"
    for output in forked_processes(CODE, 2, tmp_path, tmp_path / "two", helpers, checkpoint):
        line = next(line for line in output.splitlines() if line.startswith("metrics "))
        assert json.loads(line.removeprefix("metrics ")) == alone
    found = [json.loads((tmp_path / run / "detections_val.json").read_text()) for run in ("run", "two")]
    assert found[0] == found[1] and len({row["image_id"] for row in found[0]}) == 5
