"""Figures are drawn whatever backend the environment asks of matplotlib."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import os, sys
from pathlib import Path
from pela_vl.base.drawing import new_figure, save_figure
save_figure(new_figure(2, 2), Path(sys.argv[1]))
assert os.environ["MPLBACKEND"] == sys.argv[2]
"""


@pytest.mark.slow
def test_a_notebooks_backend_does_not_matter(tmp_path):
    backend = "module://not.there.backend_inline!"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "a.png"), backend], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
