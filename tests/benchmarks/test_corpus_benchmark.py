"""The benchmark of the corpus builder runs at a small size and measures what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_small_and_the_users_folder_is_left_alone(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "mine").write_text("mine")
    command = [sys.executable, str(ROOT / "benchmarks" / "corpus.py"), "--scratch", str(tmp_path / "scratch"),
               "--photographs", "6", "--sizes", "50", "100", "--workers", "2", "--output", str(tmp_path / "m.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "m.json").read_text())
    assert [(row["measured"], row["output"], row["workers"], row["images"], row["pairs"]) for row in rows] == [
        ("speed", "lists", 1, 6, 30),
        ("speed", "lists", 2, 6, 30),
        ("speed", "shards", 1, 6, 30),
        ("speed", "shards", 2, 6, 30),
        ("memory", "shards", 2, 10, 50),
        ("memory", "shards", 2, 20, 100),
    ]
    assert all(row["main_peak_mib"] > 10 for row in rows)
    assert all((row["largest_worker_peak_mib"] > 10) == (row["workers"] > 1) for row in rows)
    assert done.stdout.count("\n") == 7 and [path.name for path in (tmp_path / "scratch").iterdir()] == ["mine"]
