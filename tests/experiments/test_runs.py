"""A grid's runs: each once, after what it needs, again when what it rests on changes, one writer a folder."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pela_vl.base.errors import UserError
from pela_vl.demo import stages
from pela_vl.experiments import runs
from pela_vl.experiments.runs import Grid, Run, fingerprints, in_order

APPEND = "import sys; open(sys.argv[1], 'a').write('x')"


def append(tmp_path, name, needs=(), text=APPEND, resumable=False):
    output = tmp_path / "grid" / name / "out"
    return Run(name, (sys.executable, "-c", text, str(output)), (output,), tuple(needs), resumable)


def run_all(tmp_path, *runs, jobs=1):
    source = tmp_path / "teacher"
    if not source.exists():
        source.write_text("one")
    grid = Grid(runs, tmp_path / "grid", [source])
    grid.execute(jobs)
    return grid


def read(run):
    return run.makes[0].read_text()


def test_what_is_needed_comes_first_and_once(tmp_path):
    first = append(tmp_path, "a")
    second, third = append(tmp_path, "b", [first]), append(tmp_path, "c", [first])
    assert [run.name for run in in_order([third, second])] == ["a", "c", "b"]


def test_done_runs_are_shared_by_grids_and_not_repeated(tmp_path):
    first = append(tmp_path, "a")
    grid = run_all(tmp_path, append(tmp_path, "b", [first]))
    assert all(grid.done(run) for run in grid.runs)
    run_all(tmp_path, append(tmp_path, "b", [first]), append(tmp_path, "c", [first]))
    assert [read(run) for run in grid.runs] == ["x", "x"]


def test_a_change_reruns_what_rests_on_it_and_nothing_else(tmp_path):
    base = append(tmp_path, "a")
    left, right = append(tmp_path, "left", [base]), append(tmp_path, "right", [base])
    top = append(tmp_path, "top", [left])
    run_all(tmp_path, top, right)
    for run in (base, left, right, top):
        run.makes[0].write_text("old")
    changed = append(tmp_path, "left", [base], APPEND + "  # changed")
    run_all(tmp_path, append(tmp_path, "top", [changed]), right)
    assert [read(run) for run in (base, changed, right, top)] == ["old", "x", "old", "x"]


def test_a_changed_configuration_reruns_and_keeps_what_was_finished(tmp_path):
    run = append(tmp_path, "a")
    config = tmp_path / "a.yaml"
    run = Run("a", (*run.command, "--config", str(config)), run.makes)
    for content, left in (("output: a", "x"), ("output: a  # a remark", "kept"), ("output: b", "x")):
        config.write_text(content)
        stages._settings.cache_clear()  # a new call reads it anew
        run_all(tmp_path, run)
        assert read(run) == left
        run.makes[0].write_text("kept")
    assert (tmp_path / "grid" / "a.old" / "out").read_text() == "kept"


def test_a_launcher_is_no_part_of_what_a_run_does_and_an_input_counts_where_it_is_named(tmp_path):
    teacher = tmp_path / "teacher.pth"
    teacher.write_text("one")
    one, two = (Run("a", (*launch, "x.py", f"init={teacher}"), ()) for launch in (("deepspeed", "--num_gpus", "4"), ()))
    other = Run("b", ("y.py",), ())
    before = [fingerprints([run, other], [teacher]) for run in (one, two)]
    assert before[0] == before[1]
    teacher.write_text("two")
    after = fingerprints([one, other], [teacher])
    assert after["a"] != before[0]["a"] and after["b"] == before[0]["b"]


@pytest.mark.parametrize(("resumable", "left"), [(True, "xx"), (False, "x")])
def test_after_a_failure_the_rest_is_done_and_a_resumable_run_goes_on(tmp_path, resumable, left):
    gate = tmp_path / "gate"
    text = f"{APPEND}; import os; ok = os.path.exists({str(gate)!r}); print('no gate'); sys.exit(0 if ok else 3)"
    failing, other = append(tmp_path, "failing", (), text, resumable), append(tmp_path, "other")
    with pytest.raises(UserError, match="failing failed: no gate"):
        run_all(tmp_path, other, failing)
    gate.touch()
    run_all(tmp_path, other, failing)
    assert (read(failing), read(other)) == (left, "x")


def test_a_run_that_does_not_write_what_it_should_has_failed(tmp_path):
    with pytest.raises(UserError, match="ended without writing"):
        run_all(tmp_path, append(tmp_path, "a", (), "pass"))


def test_runs_side_by_side_keep_the_order_of_needs(tmp_path):
    base = append(tmp_path, "base")
    copy = "import sys, pathlib; out = pathlib.Path(sys.argv[1]); out.write_text((out.parent.parent/'base'/'out').read_text())"
    copies = [append(tmp_path, f"copy{i}", [base], copy) for i in range(4)]
    run_all(tmp_path, *copies, jobs=3)
    assert {read(run) for run in copies} == {"x"}


def test_a_folder_that_an_orphan_still_writes_is_refused(tmp_path, monkeypatch):
    """The starter is killed, its command goes on: nobody may start a second one in the same folder."""
    text = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); {APPEND}; time.sleep(30)"
    run = append(tmp_path, "slow", (), text)
    starter = f"""
from pathlib import Path
from pela_vl.experiments import runs
from pela_vl.experiments.runs import Grid, Run
out = Path({str(run.makes[0])!r})
Grid([Run("slow", {run.command!r}, (out,))], Path({str(tmp_path / "grid")!r}), []).execute()
"""
    process = subprocess.Popen([sys.executable, "-c", starter])
    deadline = time.monotonic() + 60
    while not run.makes[0].exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    monkeypatch.setattr(runs, "_PATIENCE", 0.5)
    with pytest.raises(UserError, match="another process"):
        Grid([run], tmp_path / "grid", []).execute()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_missing_teacher_is_named(tmp_path):
    with pytest.raises(UserError, match="--teacher"):
        Grid([append(tmp_path, "a")], tmp_path, [tmp_path / "none.pth"])
