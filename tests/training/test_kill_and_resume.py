"""The script, killed at any moment and resumed, against one that ran through."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shard_files import listed_samples, write_shards
from tiny_runs import PATIENCE, ROOT, environment

STEPS = 40  # those of `pela_config`


def start(pela_config, output, *more) -> subprocess.Popen:
    command = [sys.executable, "tasks/pretrain.py", "--config", str(pela_config), "--set", f"output={output}", *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait(process) -> None:
    try:
        output, _ = process.communicate(timeout=3 * PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, output.decode()[-3000:]


def losses(folder: Path) -> dict[int, float]:
    file = folder / "log.jsonl"
    found = {}
    for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
        if line.endswith("\n"):
            entry = json.loads(line)
            if "event" not in entry:
                found[entry["step"]] = entry["loss"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("data", ["lists", "shards"])
def test_losses_are_bit_identical_after_kills_at_random_moments(pela_config, listed, tmp_path, data):
    more = []
    if data == "shards":
        samples = listed_samples(listed / "lists/scenes_train.json", listed)
        shards = write_shards(tmp_path / "shards", samples, [50, 7, 40, 23])
        more = ["--set", f"data.train=['{shards}']", "--set", "data.workers=2"]
    through = start(pela_config, tmp_path / "whole", *more)
    seed = random.randrange(10**6)
    draws = random.Random(seed)
    print(f"moments of the kills: seed {seed}")
    killed, seen = tmp_path / "killed", set()
    for least in (1, 15):
        moment = least + draws.randrange(12)
        process = start(pela_config, killed, "--resume", *more)
        while process.poll() is None and max(losses(killed), default=-1) < moment:
            time.sleep(0.005)
        time.sleep(draws.random() * 0.1)
        process.kill()
        output = process.communicate()[0].decode()
        assert process.returncode == -9, output[-3000:]
        seen |= losses(killed).items()
    assert max(losses(killed)) < STEPS - 1
    wait(start(pela_config, killed, "--resume", *more))
    wait(through)
    expected = losses(tmp_path / "whole")
    assert sorted(expected) == list(range(STEPS)) and len(set(expected.values())) == STEPS
    assert losses(killed) == expected
    assert seen <= expected.items()  # what was logged before the kills too
    # nothing half-written is left beside the run's own files
    # (a kill before the first checkpoint leaves nothing to resume: the log of that start is put aside)
    left = {path.name for path in killed.iterdir()} - {"log.previous.jsonl"}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}
    whole, last = (folder / "last.safetensors" for folder in (tmp_path / "whole", killed))
    assert whole.read_bytes() == last.read_bytes()
