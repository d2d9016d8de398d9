"""tasks/classify.py, killed at any moment and resumed, against one that ran through."""

import pytest
from killed_runs import run_whole_and_killed
from labelled_files import write_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CONFIG = """method: full
model: {{size: deit_tiny_patch16_224, image_size: 32, drop_path: 0.3, overrides: {{width: 24, depths: [3], heads: [2]}}}}
data: {{train: ["{images}"], workers: 2}}
vision: {{repeats: 2, resize: 36}}
optim: {{lr: 1.0e-3, decay: timm, layer_decay: 0.9, schedule: cosine_timm, warmup_epochs: 1}}
train: {{steps: 60, batch_size: 3, accumulation: 2, ema: 0.9, checkpoint_every: 4, threads: 1, device: cpu, precision: fp32}}
"""


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(images=write_images(tmp_path / "images", 4, 0)))
    _, losses = run_whole_and_killed("tasks/classify.py", config, tmp_path, (5, 25, 40), 10, ("last.safetensors",))
    assert len(losses) == 60
