"""The run's record: no step stands twice after a resumption, a kill costs nothing, progress tells the time left."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pela_vl.base import progress
from pela_vl.base.config import load
from pela_vl.base.progress import Progress, clock
from pela_vl.training import run_log as run_logging
from pela_vl.training.run_log import RunLog, cut_log, read_log, write_run_header


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def event_accumulator(monkeypatch):
    """TensorBoard's reader. Event files of one second are read by the order of their count as text, in which 10 precedes 9.

    A run that is resumed writes in another second; here the count begins anew in each test.
    """
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(10))
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def record(folder: Path, steps: range, **options: object) -> None:
    with RunLog(folder, stream=io.StringIO(), **options) as log:
        for step in steps:
            log.scalars(step, {"epoch": 0, "loss": float(step), "terms": {"itc": step / 2}})
            if step % 5 == 4:
                log.event("evaluation", {"tr1": step * 10.0})


def test_lines(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False, stream=io.StringIO()) as log:
        log.scalars(
            3,
            {
                "loss": torch.tensor(1.5, requires_grad=True),
                "terms": {"itc": np.float32(0.25), "fd": math.nan},
                "lr": [1e-4, math.inf],
                "bad": Path("a"),
                "count": np.int64(3),
            },
        )
        log.event("evaluation", {"split": "val", "tr1": 12.5})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [
        {
            "step": 3,
            "loss": 1.5,
            "terms": {"itc": 0.25, "fd": "nan"},
            "lr": [1e-4, "inf"],
            "bad": "a",
            "count": 3,
        },
        {"event": "evaluation", "step": 3, "split": "val", "tr1": 12.5},
    ]


def test_no_step_stands_twice_after_a_resumption(tmp_path: Path) -> None:
    record(tmp_path, range(10), tensorboard=False)
    record(tmp_path, range(7, 12), tensorboard=False, resume_step=6)
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines if "event" not in line] == list(range(12))
    assert [line["step"] for line in lines if "event" in line] == [4, 9]


def test_tensorboard_agrees_after_a_resumption(tmp_path: Path, event_accumulator) -> None:
    record(tmp_path, range(10))
    record(tmp_path, range(7, 12), resume_step=6)
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("terms/itc")] == list(range(12))
    assert [event.step for event in board.Scalars("evaluation/tr1")] == [4, 9]
    record(tmp_path, range(2))
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [0, 1]


def test_tensorboard_takes_every_so_many_steps_and_the_last_while_the_log_has_all(
    tmp_path: Path, event_accumulator
) -> None:
    record(tmp_path, range(6), board_every=4, total_steps=12)
    record(tmp_path, range(6, 12), resume_step=5, board_every=4, total_steps=12)
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [0, 4, 8, 11]
    assert [event.step for event in board.Scalars("evaluation/tr1")] == [4, 9]
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line] == list(range(12))


def test_a_fresh_start_sets_the_old_log_aside(tmp_path: Path) -> None:
    record(tmp_path, range(5), tensorboard=False)
    record(tmp_path, range(2), tensorboard=False)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [0, 1]
    assert len(read_log(tmp_path / "log.previous.jsonl")) == 6


def test_cut_drops_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 1, "lo')
    assert read_log(path) == [{"step": 0}, {"step": 1}]
    assert cut_log(path, 5) == 1
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    path.write_text('{"step": 0}\n{"st\n{"step": 1}\n')
    with pytest.raises(ValueError):
        read_log(path)
    assert cut_log(tmp_path / "absent", 5) == 0


KILLED = """
import os, signal, sys
from pela_vl.training.run_log import RunLog
log = RunLog(sys.argv[1], tensorboard=False)
for step in range(3):
    log.scalars(step, {"loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_line_of_a_finished_step(tmp_path: Path) -> None:
    root = Path(run_logging.__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, stderr=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [0, 1, 2]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    stream = io.StringIO()
    with RunLog(tmp_path / "run", enabled=False, total_steps=2, stream=stream) as log:
        log.scalars(0, {"loss": 1.0})
        log.event("evaluation", {})
        log.say("hello")
    assert not (tmp_path / "run").exists() and stream.getvalue() == ""


def test_without_tensorboard_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    stream = io.StringIO()
    with RunLog(tmp_path, stream=stream) as log:
        log.scalars(0, {"loss": 1.0})
        log.scalars(1, {"loss": 1.0})
    assert len(read_log(tmp_path / "log.jsonl")) == 2
    assert stream.getvalue().count("tensorboard is not installed") == 1


def test_plain_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    bar = Progress(100, "train", initial=40, unit="step", stream=stream, interval=10)
    for step in range(41, 101):
        now[0] += 2.0
        bar.to(step, f"loss {step / 100:.3f}")
    bar.close()
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train:  41% 41/100  0.5 step/s  1m58s left  loss 0.410"
    assert lines[1] == "train:  46% 46/100  0.5 step/s  1m48s left  loss 0.460"
    assert lines[-1] == "train: 100% 100/100  0.5 step/s  took 2m00s  loss 1.000"
    assert len(lines) == 13


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    stream = Terminal()
    with RunLog(tmp_path, tensorboard=False, total_steps=4, stream=stream) as log:
        for step in range(4):
            log.scalars(step, {"loss": 2.0, "terms": {"itc": 1.25}, "lr": 1.0})
        log.say("a line of its own")
    shown = stream.getvalue()
    assert "4/4" in shown and "loss 2.000 itc 1.250" in shown and "100%" in shown
    assert re.search(r"[\r\n]a line of its own\n", shown)


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 59.4, 59.6, 187, 3599.7, 7500)] == ["0s", "59s", "1m00s", "3m07s", "1h00m", "2h05m"]


@dataclass
class Config:
    lr: float
    name: str = "x"


def test_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tasks/pretrain.py", "--set", "name=a b"])
    entry = write_run_header(tmp_path / "run", Config(1e-3), seed=7)
    assert load(Config, tmp_path / "run" / "config.yaml") == Config(1e-3)
    assert entry["seed"] == 7 and entry["command"].endswith("tasks/pretrain.py --set 'name=a b'")
    assert entry["versions"]["torch"] == torch.__version__.split("+")[0] and entry["versions"]["numpy"]
    text = (tmp_path / "run" / "run.json").read_text()
    assert os.uname().nodename not in text
    write_run_header(tmp_path / "run", Config(1e-3), seed=7, resumed=True)
    starts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [start["resumed"] for start in starts] == [False, True]
    write_run_header(tmp_path / "run", Config(1e-3), seed=7)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())) == 1


def test_commit_marks_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pela_vl" / "training"
    package.mkdir(parents=True)
    monkeypatch.setattr(run_logging, "__file__", str(package / "run_log.py"))
    assert run_logging._commit() is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    assert run_logging._commit() is None  # no commit yet
    (package / "a.py").write_text("")
    git("add", ".")
    git("commit", "-m", "first")
    assert run_logging._commit() == git("rev-parse", "HEAD")
    (package / "a.py").write_text("1")
    assert run_logging._commit() == git("rev-parse", "HEAD") + "+changes"
