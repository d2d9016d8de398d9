"""tasks/classify.py, killed at any moment and resumed, against one that ran through."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from labelled_files import write_images
from tiny_runs import PATIENCE, ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CONFIG = """method: full
model: {{size: deit_tiny_patch16_224, image_size: 32, drop_path: 0.3, overrides: {{width: 24, depths: [3], heads: [2]}}}}
data: {{train: ["{images}"], workers: 2}}
vision: {{repeats: 2, resize: 36}}
optim: {{lr: 1.0e-3, decay: timm, layer_decay: 0.9, schedule: cosine_timm, warmup_epochs: 1}}
train: {{steps: 60, batch_size: 3, accumulation: 2, ema: 0.9, checkpoint_every: 4, threads: 1, device: cpu, precision: fp32}}
"""


def start(config: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "tasks/classify.py", "--config", str(config), "--resume", "--set", f"output={output}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def steps_logged(folder: Path) -> int:
    file = folder / "log.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(images=write_images(tmp_path / "images", 4, 0)))
    process = start(config, tmp_path / "whole")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output.decode()[-3000:]
    seed = random.randrange(10**6)
    draws, killed, kills = random.Random(seed), tmp_path / "killed", 0
    print(f"moments of the kills: seed {seed}")
    for least in (5, 25, 40):
        process, moment = start(config, killed), least + draws.randrange(10)
        while process.poll() is None and steps_logged(killed) < moment:
            time.sleep(0.002)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills >= 2
    process = start(config, killed)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output.decode()[-3000:]
    assert (killed / "last.safetensors").read_bytes() == (tmp_path / "whole/last.safetensors").read_bytes()
    losses = [
        {
            e["step"]: e["loss"]
            for e in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
            if "loss" in e
        }
        for name in ("whole", "killed")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 60
