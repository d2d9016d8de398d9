"""tasks/reproduce.py as a user runs it: a small grid to its end, killed on the way; the plan of the full one."""

import csv
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments):
    return [sys.executable, "tasks/reproduce.py", *map(str, arguments)]


def call(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)


def run_here(monkeypatch, *arguments):
    """The script in this process, which has the libraries imported already; returns its exit code."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["tasks/reproduce.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "tasks" / "reproduce.py"), run_name="__main__")
    return stopped.value.code


def test_what_is_done_does_not_depend_on_how_a_path_is_typed(tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "tasks" / "reproduce.py"))
    monkeypatch.chdir(ROOT / "tasks")
    inside = Path("runs") / "x"
    assert {script["_from_root"](path) for path in ("../runs/x", ROOT / "runs" / "x")} == {inside}
    assert script["_from_root"](tmp_path / "x") == tmp_path / "x"


@pytest.mark.slow
def test_a_plan_of_the_full_scale_names_commands_and_hours_and_runs_nothing(tmp_path, monkeypatch, capsys):
    arguments = ("table6", "--scale", "full", "--output", tmp_path, "--dry-run", "--gpus", "2")
    totals = []
    for utilisation in ("0.3", "0.15"):
        assert run_here(monkeypatch, *arguments, "--utilisation", utilisation) == 0
        told = capsys.readouterr().out
        assert "deepspeed --num_gpus 2 tasks/pretrain.py --config configs/pretrain.yaml" in told
        hours = [float(value.replace(",", "")) for value in re.findall(r": ([\d,]+) GPU hours \(", told)]
        totals.append(float(re.search(r"# ([\d,]+) GPU hours in all", told)[1].replace(",", "")))
        assert len(hours) == 4 and totals[-1] == pytest.approx(sum(hours), abs=len(hours))
    assert totals[1] == pytest.approx(2 * totals[0], abs=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_grid_killed_on_the_way_goes_on_and_writes_its_table(tmp_path):
    arguments = ("table6", "--scale", "quick", "--output", tmp_path)
    process = subprocess.Popen(command(*arguments), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    trained = tmp_path / "quick" / "pretrain" / "pela" / "seed0" / "log.jsonl"
    deadline = time.monotonic() + 400
    while not trained.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert trained.exists()
    rendered = (tmp_path / "quick" / "data" / "render" / "grid.json").stat().st_mtime_ns
    done = call(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "quick" / "data" / "render" / "grid.json").stat().st_mtime_ns == rendered
    rows = list(csv.DictReader((tmp_path / "quick" / "table6.csv").open()))
    assert {row["row"] for row in rows} == {"dense", "SVD only", "PELA"}
    assert all(0 <= float(row["mean"]) <= 100 for row in rows)
    sizes = {row["row"]: int(row["parameters"]) for row in rows}
    assert sizes["SVD only"] == sizes["PELA"] < 0.5 * sizes["dense"]
    assert "65.07" in (tmp_path / "quick" / "table6.md").read_text()
    assert (tmp_path / "quick" / "table6.png").stat().st_size > 5000
    again = call(*arguments)
    assert "started" not in again.stderr and again.stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("table4", "--teacher", "none.pth"), "none.pth is missing"),
        (("table4", "--jobs", "0"), "positive"),
        (("table4", "--scale", "full", "--jobs", "2"), "--jobs"),
        (("table4", "--family", "vision"), "table4 is not of --family vision"),
        (("table1",), "table1 is not of --family albef"),
        (("table1", "--family", "vision", "--teacher", "nowhere"), "missing; name the dense"),
        (("table1", "--family", "vision", "--backbones", "swin", "vit"), "vit: at this scale there are deit, swin"),
        (("table4", "--backbones", "swin"), "--backbones goes with --family vision"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, *arguments, "--output", tmp_path) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
