"""A task's script killed at random moments and resumed, beside the same run that nobody killed."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tiny_runs import ROOT, environment

PATIENCE = 600  # seconds of a run, which takes 20 of a core


def start(script: str, config: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, script, "--config", str(config), "--resume", "--set", f"output={output}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def to_its_end(script: str, config: Path, output: Path) -> None:
    process = start(script, config, output)
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, text.decode()[-3000:]


def logged(folder: Path) -> list[str]:
    """The lines of a run's log, whole ones."""
    file = folder / "log.jsonl"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def losses(folder: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in map(json.loads, logged(folder)) if "loss" in entry}


def run_whole_and_killed(
    script: str, config: Path, folder: Path, moments: Sequence[int], within: int, files: Sequence[str]
) -> tuple[Path, dict[int, float]]:
    """Two runs in `folder`; they must end with the same bits in the named files and with the same losses.

    `moments`: logged steps after each of which, by up to `within` steps more, the run is killed. Returns the killed run's
    folder, and the loss of every step.
    """
    whole, killed, kills = folder / "whole", folder / "killed", 0
    to_its_end(script, config, whole)
    seed = random.randrange(10**6)
    draws = random.Random(seed)
    print(f"moments of the kills: seed {seed}")
    for least in moments:
        process, moment = start(script, config, killed), least + draws.randrange(within)
        while process.poll() is None and len(logged(killed)) < moment:
            time.sleep(0.002)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills >= 2
    to_its_end(script, config, killed)
    for name in files:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert losses(whole) == losses(killed)
    return killed, losses(killed)
