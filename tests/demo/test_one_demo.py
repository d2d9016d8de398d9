"""One demo at a time in a folder, and none leaves a training behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pela_vl.base.errors import UserError
from pela_vl.demo.stages import Stage, run_stages

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from pathlib import Path
from pela_vl.demo.stages import Stage, run_stages
folder = Path(sys.argv[1])
wait = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
run_stages([Stage("wait", ["-c", wait, str(folder / "pid")])], folder / "run", [])
"""


@pytest.fixture
def demo(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)},
                               stderr=subprocess.DEVNULL)  # fmt: skip
    until = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_demo_leaves_no_child(demo, tmp_path, way):
    child = int((tmp_path / "pid").read_text())
    assert is_running(child)
    demo.send_signal(way)
    demo.wait()
    until = time.monotonic() + 5
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_running(child)


def test_a_second_demo_is_refused_and_goes_on_later(demo, tmp_path):
    stage = Stage("write", ["-c", "import sys; open(sys.argv[1], 'w').write('x')", str(tmp_path / "x")])
    with pytest.raises(UserError, match="another run is writing there"):
        run_stages([stage], tmp_path / "run", [])
    assert not (tmp_path / "x").exists()
    demo.kill()
    demo.wait()
    run_stages([stage], tmp_path / "run", [])
    assert (tmp_path / "x").read_text() == "x"


def test_without_matplotlib_nothing_is_begun(tmp_path, monkeypatch):
    """Its page wants charts; that is said before minutes of work."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"plots want matplotlib: pip install .*viz"):
        run_stages([Stage("touch", ["-c", f"open({str(tmp_path / 'x')!r}, 'w')"])], tmp_path / "run", [])
    assert not (tmp_path / "x").exists()
