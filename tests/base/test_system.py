"""What differs between systems, on this one and with the modules hidden that only POSIX has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pela_vl.base import system

ROOT = Path(__file__).parents[2]

HIDDEN = """
import os, sys
import multiprocessing, tempfile, torch  # what these need of POSIX they have by now
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None  # an import of it fails
for name in ("pread", "sched_getaffinity", "register_at_fork", "O_NOFOLLOW", "O_DIRECTORY"):
    delattr(os, name)
import pkgutil, importlib, pela_vl
for module in pkgutil.walk_packages(pela_vl.__path__, "pela_vl."):
    if module.name.startswith(sys.argv[2].split(",")[0]) or module.name in sys.argv[2].split(","):
        importlib.import_module(module.name)
from pathlib import Path
from pela_vl.base.build_folder import alone
from pela_vl.base.errors import UserError
from pela_vl.base.run_folder import hold_run_folder
from pela_vl.base.files import atomic_folder, atomic_json, remove_stale
from pela_vl.base import system
root = Path(sys.argv[1])
with alone(root / "made"), hold_run_folder(root / "run"):
    atomic_json(root / "run" / "a.json", [1, 2])
    handle = system.open_to_read(root / "run" / "a.json")
    whole = (root / "run" / "a.json").read_bytes()
    assert system.read_at(handle, 4, 2) == whole[2:6] and system.read_at(handle, 99, 3) == whole[3:]
    os.close(handle)
with atomic_folder(root / "folder") as folder:
    (folder / "b").write_text("b")
assert remove_stale(root) == []
assert system.usable_cores() >= 1 and system.cpu_seconds() > 0 and system.peak_memory() != system.peak_memory()
print("well")
"""


def test_the_library_runs_without_what_only_posix_has(tmp_path):
    modules = "pela_vl.base,pela_vl.experiments.runs,pela_vl.data.sets.shards"
    command = [sys.executable, "-c", HIDDEN, str(tmp_path), modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout == "well\n", done.stderr[-2000:]


def test_no_other_file_imports_what_only_posix_has():
    names = ("import fcntl", "import resource", "import msvcrt", "os.pread", "os.kill(")
    files = [f for room in ("pela_vl", "tasks", "data_prep", "benchmarks") for f in (ROOT / room).rglob("*.py")]
    found = {f.relative_to(ROOT).as_posix() for f in files if any(name in f.read_text("utf-8") for name in names)}
    assert found == {"pela_vl/base/system.py"}


def test_a_lock_is_held_by_one_and_let_go_of_by_the_dead(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import os, sys, time; from pela_vl.base.system import try_lock;"
        "handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); print(try_lock(handle), flush=True); time.sleep(60)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, env=env)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert holder.stdout.readline() == "True\n"
        assert system.is_running(holder.pid)
        assert not system.try_lock(handle) and not system.wait_for_lock(handle, 0.2)
        holder.kill()
        holder.wait()
        assert system.wait_for_lock(handle, 5) and not system.is_running(holder.pid)
    finally:
        holder.kill()
        os.close(handle)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")
def test_a_process_does_not_count_its_parents_memory():
    code = "from pela_vl.base.system import peak_memory; print(peak_memory())"
    parent = (
        "import subprocess, sys; held = bytearray(b'x' * 2**28);"
        f"print(subprocess.run([sys.executable, '-c', {code!r}], capture_output=True, text=True).stdout)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, env=env)
    assert 2**20 < float(done.stdout) < 2**28, done.stderr


@pytest.mark.skipif(system.resource is None, reason="this system has no resource module")
def test_peak_memory_is_in_bytes():
    assert 2**23 < system.peak_memory() < 2**40


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")
def test_a_peak_never_falls_though_the_kernels_counter_does(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "_peaks", [0.0])
    readings = []
    for kib in (1474851, 1474847, 1474900):
        status = tmp_path / str(kib)
        status.write_text(f"Name:\tpython\nVmHWM:\t{kib} kB\n")
        with monkeypatch.context() as patched:
            patched.setattr("builtins.open", lambda *args, path=status, **kwargs: path.open())
            readings.append(system.peak_memory())
    assert [reading / 1024 for reading in readings] == [1474851, 1474851, 1474900]
