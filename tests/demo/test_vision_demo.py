"""`make demo-vision`: its commands, and at a tiny size the whole of it, killed on the way."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pela_vl.base import config
from pela_vl.base.errors import UserError
from pela_vl.demo.vision import BACKBONES, VisionPaths, VisionSizes, vision_stages
from pela_vl.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("trained", [False, True], ids=["shipped", "trained"])
def test_every_command_is_a_script_with_settings_that_load(trained, monkeypatch):
    monkeypatch.chdir(ROOT)
    paths = VisionPaths(Path("r"), Path("o"), train_teachers=trained)
    stages = vision_stages(paths, VisionSizes(steps=40, teacher_steps=60))
    assert len(stages) == (1 + 6 * len(BACKBONES) if not trained else 2 + 7 * len(BACKBONES))
    teachers = set()
    for stage in stages:
        assert (ROOT / stage.command[0]).is_file()
        words = stage.command
        if "--checkpoint" in words:
            teachers.add(words[words.index("--checkpoint") + 1])
        if "--config" in words:
            changes = [value for flag, value in zip(words, words[1:], strict=False) if flag == "--set"]
            settings = config.load(Settings, words[words.index("--config") + 1], changes)
            training = "teacher" in words[words.index("--config") + 1]
            assert settings.data.test == (None if training else "o/32/test")
            assert settings.train.steps == (60 if training else settings.train.steps)
            if settings.method.name == "pela" and "--evaluate" not in words:
                assert settings.train.steps == 40 and settings.init.teacher in teachers
    shipped = {str(backbone.shipped) for backbone in BACKBONES.values()}
    assert teachers == ({f"r/{name}/dense/best.safetensors" for name in BACKBONES} if trained else shipped)


def test_the_teachers_steps_are_refused_where_none_is_trained(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo_vision.py", "--teacher-steps", "5"])
    with pytest.raises(UserError, match="--train-teachers"):
        runpy.run_path(str(ROOT / "tasks" / "demo_vision.py"))["main"]()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_at_a_small_size_killed_on_the_way(tmp_path):
    small = ["--train", "300", "--val", "100", "--test", "200", "--steps", "6"]
    command = [sys.executable, "tasks/demo_vision.py", "--output", str(tmp_path / "demo"), *small]
    command += ["--images", str(tmp_path / "objects")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    begun, until = tmp_path / "demo" / list(BACKBONES)[-1] / "pela" / "run.json", time.monotonic() + 400
    while not begun.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert begun.exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("done before") == 6 * len(BACKBONES)  # all stages before the one that was killed
    demo = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [family["title"] for family in demo["families"]] == [backbone.title for backbone in BACKBONES.values()]
    for family in demo["families"]:
        teacher, truncated, fitted, pela = family["models"]
        assert fitted["params"] <= truncated["params"] == pela["params"] < 0.6 * teacher["params"]
        assert teacher["top1"] > truncated["top1"] + 10  # the shipped teacher, not a run of a few steps
        assert len(teacher["similarity"]) == len(pela["similarity"]) == 100
        assert len(family["samples"]) == 12 and len(next(iter(family["losses"].values()))) == 6
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "data:image/jpeg;base64," in page and "Similarity inside a class" in page
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and again.stderr.count("done before") == 1 + 6 * len(BACKBONES)
