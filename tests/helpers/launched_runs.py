"""A script under the deepspeed launcher."""

import shutil
import subprocess
import sys
from pathlib import Path

from tiny_runs import PATIENCE, ROOT, environment, free_port


def launched(processes: int, *arguments: str | Path, patience: float = 3 * PATIENCE) -> str:
    """Run `deepspeed arguments...` to its end in so many processes (0: plain Python, no launcher); returns what it printed."""
    scripts = Path(sys.executable).parent
    if processes:
        launcher = shutil.which("deepspeed", path=str(scripts))
        assert launcher, "the deepspeed launcher is not installed beside this Python"
        start = [launcher, "--num_gpus", str(processes), "--master_port", str(free_port())]
    else:
        start = [sys.executable]
    env = environment()
    env["PATH"] = f"{scripts}:{env['PATH']}"
    command = [*start, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=patience)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr
