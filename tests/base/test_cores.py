"""Default workers: the cores this process may use, not the machine's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pela_vl.base.system import usable_cores

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "text, cores", [("150000 100000", 2), ("30000 100000", 1), ("max 100000", None), ("odd", None)]
)
def test_a_containers_quota(tmp_path, monkeypatch, text, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path / "cpu.max") == (cores or 8)
    assert usable_cores(tmp_path / "absent") == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity masks")
def test_an_affinity_mask():
    code = "import os; from pela_vl.base.system import usable_cores as cores; "
    code += "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout == "1\n"
