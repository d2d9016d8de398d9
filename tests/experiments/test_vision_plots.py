"""Figures 1, 2 and 4 of the vision half from records as runs write them."""

from pathlib import Path

import pytest

from pela_vl.base.files import atomic_json
from pela_vl.experiments.plots import new_figure
from pela_vl.experiments.report import report
from pela_vl.experiments.results import collect
from pela_vl.experiments.runs import Grid
from pela_vl.experiments.tables import table_runs
from pela_vl.experiments.vision import VISION_TABLES, vision_demo_scales
from pela_vl.experiments.vision_plots import PLOTS, similarities, similarity


class Done(Grid):
    """A grid in which all is done."""

    def done(self, run):
        return True


@pytest.fixture
def scale(tmp_path):
    return vision_demo_scales(tmp_path)[0]


def filled(name, scale, seeds):
    """The table, and a grid with a record for every run: the seed decides the figures."""
    table = VISION_TABLES[name](scale)
    runs = [run for seed in seeds for run in table_runs(table, scale, seed)]
    for run in runs:
        seed = int(Path(run.name).name.removeprefix("seed"))
        metrics = {"top1": 50.0 + seed, "top5": 80.0, "similarity": 0.25}
        record = {"metrics": metrics, "class_similarity": {"a": 0.1 * seed, "b": 0.5}}
        atomic_json(scale.root / run.name / "evaluation.json", record)
    return table, Done(runs, scale.root, [])


@pytest.mark.parametrize("name", VISION_TABLES)
def test_every_table_is_written_and_drawn(name, scale):
    table, grid = filled(name, scale, (0, 1))
    text = report(table, scale, (0, 1), grid)
    pela = next(
        line
        for line in text.splitlines()
        if line.startswith("| PELA") or line.startswith("| FD + RWP") or "kappa 3" in line
    )
    assert "50.5 ± 0.7" in pela and "25.0 ± 0.0" in pela
    for suffix in (".md", ".csv", ".png"):
        assert (scale.root / f"{name}{suffix}").stat().st_size > 100
    assert table.plot == "differences" or table.plot in PLOTS


def test_figure_2_counts_every_class_of_every_seed_and_what_draws_nothing_once(scale):
    table, grid = filled("figure2", scale, (0, 1, 2))
    found = similarities(collect(table, scale, (0, 1, 2), grid), scale, grid)
    assert found["dense"] == [0.0, 0.5] == found["SVD only"]
    assert sorted(found["PELA"]) == pytest.approx([0.0, 0.1, 0.2, 0.5, 0.5, 0.5])


def test_figure_2_is_as_high_for_one_seed_as_for_three(scale):
    table, grid = filled("figure2", scale, (0, 1, 2))
    figure = new_figure(4, 3)
    similarity(figure, collect(table, scale, (0, 1, 2), grid), scale, grid)
    drawn = [patch.get_xy()[:, 1].max() for patch in figure.axes[0].patches]
    assert drawn == pytest.approx([50.0] * 6)  # half the classes of each of three rows, filled and as a line


def test_a_table_of_runs_that_are_not_done_is_drawn_too(scale):
    table = VISION_TABLES["figure2"](scale)
    runs = table_runs(table, scale, 0)
    text = report(table, scale, (0,), Grid(runs, scale.root, scale.inputs))
    assert "| PELA | - | - | - | - | - |" in text
