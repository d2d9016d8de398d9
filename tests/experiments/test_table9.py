"""`tasks/reproduce.py table9`: which batch fits, and which runs the table is made of."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from segmented_files import segmentation_settings, write_ade
from tiny_runs import ROOT, environment

from pela_vl.base import config
from pela_vl.experiments import detection, segmentation
from pela_vl.experiments.batch_scaling import BACKBONES, TABLE, largest_batch
from pela_vl.experiments.runs import in_order


@given(st.integers(1, 40), st.floats(0, 900), st.floats(0.5, 30), st.floats(0, 1500))
def test_the_batch_found_is_the_largest_that_fits(smallest, fixed, each, limit):
    found = largest_batch(lambda batch: fixed + each * batch, limit, smallest)
    fitting = [batch for batch in range(smallest, 8 * smallest + 1) if fixed + each * batch <= limit]
    assert max(found) == (max(fitting) if fitting else smallest)
    assert found == {batch: fixed + each * batch for batch in range(smallest, max(found) + 1)}


def test_rows_share_the_runs_of_table_2(tmp_path):
    runs = TABLE.planned(tmp_path / "table9", TABLE.sizes, [0, 1])
    table2 = in_order(
        run for seed in (0, 1) for run in segmentation.TABLE.runs(tmp_path / "table2", TABLE.sizes, seed).values()
    )
    commands = {run.command for run in table2}
    shared = [run for run in runs if run.command in commands]
    # both data sets, and of each seed PELA's stage and the fine-tuning of the dense and the low-rank model
    assert len(shared) == 2 + 2 * 3


@pytest.mark.parametrize("scale", ["sizes", "quick"])
def test_the_swin_begins_with_the_classifiers_of_table_3(tmp_path, scale):
    sizes = getattr(detection.TABLE, scale)
    table3 = in_order(run for seed in (0, 1) for run in detection.TABLE.runs(tmp_path / "table3", sizes, seed).values())
    table9 = TABLE.planned(tmp_path / "table9", getattr(TABLE, scale), [0, 1])
    commands = {run.name: run.command for run in table3}
    swin = [run for run in table9 if f"{tmp_path}/table3/" in " ".join(run.command)]
    # the images of single objects, the classifier, PELA's stage of each seed
    assert len([run for run in swin if run.name in commands]) == 2 + 2
    # what lies in one folder is one run
    assert all(run.command == commands[run.name] for run in swin if run.name in commands)


def test_where_no_larger_batch_fits_nothing_is_trained_for_it(tmp_path):
    each, sizes = BACKBONES[0], TABLE.quick
    pela = TABLE._runs(tmp_path / "table9", each, sizes, 0)["pela"]
    assert TABLE._larger(tmp_path / "table9", each, sizes, 0, 8, 8) == pela
    larger = TABLE._larger(tmp_path / "table9", each, sizes, 0, 8, 11)
    assert larger.name != pela.name and "train.batch_size=11" in larger.command
    assert set(larger.command) - set(pela.command) == {"train.batch_size=11", f"output={larger.makes[0].parent}"}


def test_what_is_not_done_has_no_figures(tmp_path):
    text = TABLE.text(tmp_path / "table9", TABLE.quick, [0])
    assert [f"| {each.label} | - | - | - | - | - | - | - |" in text for each in BACKBONES] == [True, True]
    assert [row["memory"] for row in json.loads((tmp_path / "table9/table9.json").read_text())] == [None, None]


@pytest.mark.slow
def test_memory_grows_with_the_batch(tmp_path):
    root = write_ade(tmp_path / "ade")
    settings = segmentation_settings(root, tmp_path / "run", model__image_size=64)
    config.dump_yaml(settings, tmp_path / "run.yaml")
    words = ["-m", "pela_vl.experiments.batch_scaling", "--config", str(tmp_path / "run.yaml"), "--batch", "2"]
    words += ["--limit", "1e9"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert list(peaks) == [str(batch) for batch in range(2, 17)]
    assert list(peaks.values()) == sorted(peaks.values()) and peaks["16"] > peaks["2"] + 10
