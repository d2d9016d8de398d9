"""The demo end to end, at a size that says nothing about recall but goes through every command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pela_vl.demo.pipeline import Paths, Sizes, stages

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_is_a_script_and_configuration_of_the_repository():
    paths = Paths(Path("r"), Path("s"), Path("t"))
    commands = [stage.command for stage in stages(paths, Sizes(all_tasks=True))]
    for command in commands:
        assert (ROOT / command[0]).is_file()
        if "--config" in command:
            assert (ROOT / command[command.index("--config") + 1]).is_file()
    assert len(commands) == 22 and len(stages(paths, Sizes())) == 13


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_at_a_small_size(tmp_path):
    small = ["--train", "200", "--val", "20", "--test", "20", "--pretrain-steps", "3", "--retrieval-steps", "2"]
    command = [
        sys.executable,
        "tasks/demo.py",
        "--output",
        str(tmp_path / "demo"),
        "--scenes",
        str(tmp_path / "scenes"),
    ]
    first = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-3000:]
    demo = json.loads((tmp_path / "demo" / "demo.json").read_text())
    teacher, truncated, pela = demo["models"]
    assert truncated["params"] == pela["params"] < 0.5 * teacher["params"]
    counted = json.loads((tmp_path / "demo" / "compress.json").read_text())["flops"]
    for model, when in ((teacher, "before"), (truncated, "after"), (pela, "after")):
        parts = [counted[when][part] for part in ("linear", "conv", "attention")]  # without element-wise work
        assert model["gflops"] * 1e9 == pytest.approx(sum(parts))
    assert truncated["zero_shot"]["mean"] < teacher["zero_shot"]["mean"]
    assert len(demo["curves"]["PELA pre-training"]) == 3
    assert {"itc", "itm", "mlm", "fd", "rwp"} == set(demo["curves"]["PELA pre-training"][0]["terms"])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<svg" in page and "data:image/png;base64," in page
    again = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stderr.count("done before") == 13
