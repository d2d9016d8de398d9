"""What a grid's tables say: means, spreads, order against the paper's, and how early a curve is where another ends."""

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pela_vl.experiments.demo_scale import demo_scale
from pela_vl.experiments.plots import draw, rwp_shares, steps_saved
from pela_vl.experiments.results import Cell, Found, Line, as_csv, as_markdown, orders
from pela_vl.experiments.runs import Grid, in_order
from pela_vl.experiments.tables import TABLES, table_runs
from pela_vl.experiments.variants import RWP_SWEEP

SCALE = demo_scale(Path("r"), Path("t"))


def found(name="table6", values=((50.0, 52.0), (30.0,), ()), seeds=(0, 1)):
    table = TABLES[name](SCALE)[0]
    lines = []
    for row, own in zip(table.rows, values, strict=False):
        cells = tuple(Cell(tuple(own), row.paper.get(column.paper)) for column in table.columns)
        lines.append(Line(row, cells, 1_234_567, 0.0693))
    return Found(table, tuple(lines), seeds, 12.0, (1,))


@given(st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_a_cell_has_mean_and_standard_deviation(values):
    cell = Cell(tuple(values), None)
    assert cell.mean == pytest.approx(sum(values) / len(values))
    assert cell.spread == pytest.approx(statistics.stdev(values))


def test_cells_say_what_is_there():
    assert Cell((50.0, 52.0), None).show() == "51.0 ± 1.4"
    assert Cell((50.0,), None, 2).show() == "50.0 (1 of 2 seeds)"
    assert (Cell((50.0,), None).show(), Cell((), 3.0).show()) == ("50.0", "-")


def test_markdown_has_the_papers_figure_in_the_next_column():
    lines = as_markdown(found()).splitlines()
    inner = [line.removeprefix("|").removesuffix("|") for line in lines if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")] for line in inner]
    assert {len(row) for row in rows} == {len(rows[1])}
    dense = next(row for row in rows if row[0] == "dense")
    assert dense[3:5] == ["51.0 ± 1.4", "57.94"] and dense[1] == "1,234,567"
    truncated = next(row for row in rows if row[0] == "SVD only")
    assert truncated[3:5] == ["30.0", "-"]


def test_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(as_csv(found()))))
    dense = next(row for row in rows if row["row"] == "dense" and row["column"] == "testA")
    assert float(dense["mean"]) == 51 and float(dense["paper"]) == 65.07 and dense["seeds"] == "2"
    assert [float(value) for value in dense["values"].split()] == [50, 52]


def order_of(*cells):
    table = TABLES["table6"](SCALE)[0]
    lines = tuple(
        Line(row, (cell,) * len(table.columns), None, None) for row, cell in zip(table.rows, cells, strict=False)
    )
    return orders(Found(table, lines, (0,), 0.0, ()))[0]


def test_orders_count_pairs_as_the_paper_has_them_and_leave_noise_open():
    high, low, noisy = Cell((60.0, 60.0), 70.0), Cell((50.0, 50.0), 40.0), Cell((40.0, 90.0), 30.0)
    assert "1 of 1 pairs" in order_of(high, low)
    assert "0 of 1 pairs" in order_of(low, Cell((60.0,), 10.0)) and "below" in order_of(low, Cell((60.0,), 10.0))
    assert "not separated" in order_of(high, noisy)


@given(st.integers(1, 9), st.floats(1, 50))
def test_the_step_where_a_rising_curve_is_at_the_plain_end(at, slope):
    """A straight line from (0, 0): the goal of slope * at is there after exactly `at` steps."""
    plain = {5: 0.0, 10: slope * at}
    line = {step: slope * step for step in range(0, 11, 5)}
    text = steps_saved({"plain": plain, "whitened": line})[0]
    assert f"after {at} steps ({1 - at / 10:.0%} fewer)" in text


def test_a_curve_that_stays_below_says_so():
    text = steps_saved({"plain": {10: 80.0}, "allocated": {5: 60.0, 10: 70.0}})[0]
    assert "does not get there" in text and "70.0" in text


@pytest.mark.parametrize("name", ["table6", "figure4", "beyond_svd", "rwp"])
def test_pictures_are_drawn_of_whatever_is_there(name, tmp_path):
    from PIL import Image

    runs = table_runs(TABLES[name](SCALE)[0], SCALE, 0)
    path = draw(found(name, [(50.0, 52.0)] * 3 + [()] * 10, (0,)), SCALE, Grid(in_order(runs), tmp_path, []), tmp_path)
    with Image.open(path) as picture:
        assert len(set(picture.convert("L").resize((60, 40)).getdata())) > 10


def test_rwps_share_of_the_loss_is_read_from_the_last_quarter_of_the_done_runs(tmp_path):
    scale = demo_scale(tmp_path, Path("t"))
    variant = RWP_SWEEP["released", 20.0, True]
    table = TABLES["rwp"](scale)[0]
    grid = Grid([run for seed in (0, 1) for run in table_runs(table, scale, seed)], tmp_path, [])
    run = scale.pretrained(variant, 0)[1][0]
    folder = run.makes[0].parent
    folder.mkdir(parents=True)
    steps = [{"step": step, "loss": 4.0, "terms": {"rwp": 3.0 if step < 6 else 1.0}} for step in range(8)]
    (folder / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    assert rwp_shares(scale, (0, 1), grid) == []
    for needed in in_order([run]):  # as if executed
        for path in needed.makes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
        record = {"fingerprint": grid.prints[needed.name], "done": True}
        (tmp_path / needed.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / needed.name / "grid.json").write_text(json.dumps(record))
    assert rwp_shares(scale, (0, 1), grid) == [
        "- FD + RWP released 20: the term is 1 of a loss of 4 at the end (25.0%)",
    ]
