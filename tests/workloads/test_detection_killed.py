"""tasks/detect.py on real photographs: it fine-tunes and evaluates, and killed at any moment it ends with the same bits."""

import json
import subprocess
import sys

import pytest
from killed_runs import run_whole_and_killed
from tiny_runs import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PHOTOGRAPHS = ROOT.parent / "shared/data/coco_ccby_small"
CONFIG = """method: full
model: {{size: swin_tiny_patch4_window7_224, image_size: 128, drop_path: 0.2,
  overrides: {{width: 12, depths: [1, 1, 2, 1], heads: [1, 2, 2, 4], window: 4}}}}
data: {{train: ["{data}/train.json"], val: "{data}/val.json", image_root: "{data}/images", workers: 2}}
detection: {{masks: false, channels: 16, box_convs: 1, box_width: 32, proposals: [60, 30], anchors: 64, samples: 32,
  anchor_scale: 4.0, short: [96, 112, 128], long: 256, test_short: 128, score: 0.01, detections: 20}}
optim: {{lr: 1.0e-3, decay: mmdet, schedule: step, milestones: [1], warmup_steps: 4, warmup_lr: 1.0e-6}}
train: {{steps: 20, batch_size: 2, accumulation: 2, checkpoint_every: 3, evaluate_every: 0, threads: 1, device: cpu,
  precision: fp32}}
"""


def test_a_killed_run_on_photographs_ends_with_the_same_bits(tmp_path):
    assert PHOTOGRAPHS.is_dir(), f"{PHOTOGRAPHS}: the photographs lie beside the checkout"
    build = [sys.executable, "data_prep/build_coco_detection.py", "--photographs", str(PHOTOGRAPHS)]
    built = subprocess.run(
        [*build, "--output", str(tmp_path / "data")], cwd=ROOT, env=environment(), capture_output=True
    )
    assert built.returncode == 0 and b"53 images" in built.stdout, built.stderr
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(data=tmp_path / "data"))
    files = ("last.safetensors", "detections_val.json")
    killed, losses = run_whole_and_killed("tasks/detect.py", config, tmp_path, (2, 8, 13), 5, files)
    record = json.loads((killed / "evaluation.json").read_text())
    assert record["images"] == 16 and "box_ap" in record["metrics"] and (killed / "images_val.png").exists()
    assert len(losses) == 20 and losses[19] < losses[0]
