"""`make demo-vision`: its commands, and at a tiny size the whole of it, killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pela_vl.base import config
from pela_vl.demo.vision import BACKBONES, VisionPaths, VisionSizes, vision_stages
from pela_vl.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_is_a_script_with_settings_that_load(monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = vision_stages(VisionPaths(Path("r"), Path("o")), VisionSizes(steps=40))
    assert len(stages) == 9 * len(BACKBONES)
    for stage in stages:
        assert (ROOT / stage.command[0]).is_file()
        if "--config" in stage.command:
            words = stage.command
            changes = [value for flag, value in zip(words, words[1:], strict=False) if flag == "--set"]
            settings = config.load(Settings, words[words.index("--config") + 1], changes)
            assert settings.data.test in ("o/32/test", None) and settings.model.size in (
                None,
                "swin_tiny_patch4_window7_224",
            )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_at_a_small_size_killed_on_the_way(tmp_path):
    small = [
        "--train",
        "200",
        "--val",
        "100",
        "--test",
        "200",
        "--steps",
        "6",
        "--teacher-train",
        "200",
        "--teacher-steps",
        "6",
    ]
    command = [sys.executable, "tasks/demo_vision.py", "--output", str(tmp_path / "demo"), *small]
    command += ["--images", str(tmp_path / "objects")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    begun, until = tmp_path / "demo" / next(iter(BACKBONES)) / "pela" / "run.json", time.monotonic() + 400
    while not begun.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert begun.exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("done before") >= 8  # all stages before the one that was killed
    demo = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [family["title"] for family in demo["families"]] == [backbone.title for backbone in BACKBONES.values()]
    for family in demo["families"]:
        teacher, truncated, fitted, pela = family["models"]
        assert (
            truncated["params"] == pela["params"] < 0.5 * teacher["params"] and fitted["params"] <= truncated["params"]
        )
        assert len(teacher["similarity"]) == len(pela["similarity"]) == 100
        assert len(family["samples"]) == 12 and len(next(iter(family["losses"].values()))) == 6
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "data:image/jpeg;base64," in page and "Similarity inside a class" in page
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and again.stderr.count("done before") == 9 * len(BACKBONES)
