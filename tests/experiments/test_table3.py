"""`tasks/reproduce.py table3`: every method's runs on scenes, with next to no steps, and the table of them."""

import json
import subprocess
import sys

import pytest
from tiny_runs import ROOT, environment

from pela_vl.experiments.detection import METHODS, TABLE
from pela_vl.experiments.runs import in_order


def test_methods_share_what_they_have_in_common(tmp_path):
    runs = in_order([run for seed in (0, 1) for run in TABLE.runs(tmp_path, TABLE.sizes, seed).values()])
    names = [run.name for run in runs]
    assert names.count("classifier") == names.count("data/render_scenes") == 1
    assert {name for name in names if name.startswith("pretrain")} == {
        f"pretrain/{method}/seed{seed}" for method in ("tinybert", "pela") for seed in (0, 1)
    }
    assert len([name for name in names if name.startswith("detect")]) == 2 * len(METHODS)


def test_a_table_of_nothing_done_has_empty_cells(tmp_path):
    text = TABLE.text(tmp_path, TABLE.quick, [0])
    assert "| PELA | - | - | - |" in text and (tmp_path / "table3.md").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_table_with_next_to_no_steps(tmp_path):
    command = [sys.executable, "tasks/reproduce.py", "table3", "--scale", "quick", "--output", str(tmp_path)]
    done = subprocess.run([*command, "--threads", "1"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(METHODS) and not any("| - | - |" in row for row in rows)
    counts = {row.split("|")[1].strip(): int(row.split("|")[2].replace(",", "")) for row in rows[1:]}
    assert (
        counts["PELA"] == counts["SVD only"] < counts["dense"] == counts["LoRA"]
        and counts["TinyBERT"] < counts["dense"]
    )
    record = json.loads((tmp_path / "quick/table3/table3.json").read_text())
    assert all(len(entry["metrics"]) == 1 and "box_ap" in entry["metrics"][0] for entry in record)
    assert (tmp_path / "quick/table3/detect/pela/seed0/images_test.png").exists()
    again = subprocess.run([*command, "--show"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0 and rows == [line for line in again.stdout.splitlines() if line.startswith("| ")]
