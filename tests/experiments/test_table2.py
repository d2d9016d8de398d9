"""Table 2 at the size of scenes: every row of it from data to figures, with next to no steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT, environment

from pela_vl.experiments.dense_tables import DenseTable
from pela_vl.experiments.runs import Grid, in_order
from pela_vl.experiments.segmentation import METHODS, TABLE


def test_rows_share_the_shipped_classifier_and_the_data(tmp_path):
    first, second = (TABLE.runs(tmp_path, TABLE.sizes, seed) for seed in (0, 1))
    assert list(first) == [method.name for method in METHODS]
    runs = in_order([*first.values(), *second.values()])
    # two sets of images, and of each seed three stages before fine-tuning and six fine-tunings
    assert len(runs) == 2 + 2 * (3 + 6)
    assert f"init.checkpoint={TABLE.classifier.shipped}" in first["dense"].command
    (objects,) = [run for run in runs if run.name == "data/render_objects"]
    assert "--plain" in objects.command and objects.command[objects.command.index("--image-size") + 1] == "32"
    for name, run in first.items():
        staged = name in ("pela", "tinybert", "maskalign")
        before = "pretrain" if staged else "data/render_scenes"
        assert run.needs[0].name.startswith(before) and f"train.steps={TABLE.sizes.tune}" in run.command
        if staged:
            assert f"init.checkpoint={TABLE.classifier.shipped}" in run.needs[0].command
            assert run.needs[0].needs == (objects,)


def test_what_is_not_done_has_no_figures(tmp_path):
    text = TABLE.text(tmp_path, TABLE.quick, [0, 1])
    assert text.count("| - |") >= len(METHODS) and "Seeds 0, 1" in text
    assert [row["method"] for row in json.loads((tmp_path / "table2.json").read_text())] == [m.name for m in METHODS]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_table_from_data_to_figures(tmp_path):
    command = [
        sys.executable,
        "tasks/reproduce.py",
        "table2",
        "table9",
        "--scale",
        "quick",
        "--output",
        str(tmp_path),
        "--threads",
        "1",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    folder = Path(tmp_path) / "quick/table2"
    rows = json.loads((folder / "table2.json").read_text())
    assert all(len(row["metrics"]) == 1 and 0 <= row["metrics"][0]["mIoU"] <= 100 for row in rows)
    lines = {line.split(" | ")[0].strip("| "): line for line in (folder / "table2.md").read_text().splitlines()}
    counts = {m.label: int(lines[m.label].split(" | ")[1].replace(",", "")) for m in METHODS}
    assert counts["PELA"] == counts["SVD only"] < counts["dense"] == counts["LoRA"]
    assert counts["TinyBERT"] == counts["MaskAlign"] < counts["dense"]
    assert (folder / "segment/pela/seed0/segments_test.png").stat().st_size > 1000
    # table 9 has the runs of table 2, and the larger batches of both backbones
    rows = json.loads((tmp_path / "quick/table9/table9.json").read_text())
    assert [row["backbone"] for row in rows] == ["DeiT", "Swin"]
    for row in rows:
        assert [len(values) for values in row["mIoU"]] == [1, 1, 1]
        dense, _, plus = row["memory"]["peaks"]
        assert plus <= dense or row["memory"]["batches"][0] == row["memory"]["batches"][1]
    # run again: all is done
    again = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0 and "started" not in again.stderr


def test_the_table_says_which_rows_are_in_the_papers_order(tmp_path, monkeypatch):
    miou = {
        "dense": (50, 52),
        "svd": (60, 60),
        "lora": (40, 41),
        "tinybert": (45, 46),
        "pela": (49, 55),
        "maskalign": (),
    }
    for seed in (0, 1):
        for name, run in TABLE.runs(tmp_path, TABLE.quick, seed).items():
            if miou[name]:
                run.makes[0].parent.mkdir(parents=True)
                run.makes[0].write_text(json.dumps({"metrics": {"mIoU": miou[name][seed], "mAcc": 1, "aAcc": 2}}))
    monkeypatch.setattr(Grid, "done", lambda grid, run: run.makes[0].exists())
    monkeypatch.setattr(DenseTable, "_cost", lambda table, checkpoint: ["1", "2"])
    text = TABLE.text(tmp_path, TABLE.quick, [0, 1])
    assert "| dense | 1 | 2 | 51.0 ± 1.4 | 1.0 ± 0.0 | 2.0 ± 0.0 | 45.0 |" in text
    # of six pairs of four rows with a figure of the paper: dense and PELA differ by less than PELA's spread
    assert (
        "mIoU: 4 of 6 pairs of rows as in the paper, 1 not separated by the seeds; otherwise: LoRA below TinyBERT"
        in text
    )
    assert "| LoRA | 1 | 2 | 40.0 (1 of 2 seeds)" not in text
    (tmp_path / "segment/lora/seed1/evaluation.json").unlink()
    assert "| LoRA | 1 | 2 | 40.0 (1 of 2 seeds)" in TABLE.text(tmp_path, TABLE.quick, [0, 1])
