"""One writer a run folder, over two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pela_vl.base import run_folder
from pela_vl.base.errors import UserError
from pela_vl.base.run_folder import hold_run_folder

ROOT = Path(__file__).parents[2]
HOLD = """
import multiprocessing, os, sys, time
from pela_vl.base.run_folder import hold_run_folder
with hold_run_folder(sys.argv[1]):
    if sys.argv[2:] == ["with a worker"]:
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
        print(worker, flush=True)
    else:
        print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path / run; more arguments may follow."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "run"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_second_process_is_refused_in_one_line_and_leaves_all_as_it_is(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.3)
    process, _ = holder()
    (tmp_path / "run" / "log.jsonl").write_text("kept")
    with pytest.raises(UserError, match=rf"run: another process \(process {process.pid} on .*\) is writing") as caught:
        with hold_run_folder(tmp_path / "run"):
            (tmp_path / "run" / "log.jsonl").unlink()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "log.jsonl").read_text() == "kept"
    process.stdin.close()
    process.wait()
    with hold_run_folder(tmp_path / "run"):
        pass


def test_a_dead_holder_lets_go_even_if_its_worker_lives_on(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_PATIENCE", 2.0)
    process, worker = holder("with a worker")
    process.kill()
    process.wait()
    try:
        os.kill(int(worker), 0)
        with hold_run_folder(tmp_path / "run"):
            pass
    finally:
        os.kill(int(worker), 9)


def test_a_process_may_enter_its_own_folder_again(tmp_path):
    with hold_run_folder(tmp_path / "run"), hold_run_folder(tmp_path / "run"):
        with hold_run_folder(tmp_path / "other"):
            pass
        assert not run_folder._held.keys() - {os.path.realpath(tmp_path / "run")}
    assert not run_folder._held


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file: cannot be used as a run's folder"):
        with hold_run_folder(tmp_path / "file"):
            pass
