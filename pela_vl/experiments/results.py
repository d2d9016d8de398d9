"""Results of a grid's runs: means and spreads beside the paper's figures, as CSV, Markdown and records for plots."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from pela_vl.base.files import atomic_write
from pela_vl.checkpoints.ours import read_header
from pela_vl.cost import count_parameters
from pela_vl.deploy.sample_cost import deployed, sample_flops
from pela_vl.experiments.runs import Grid, Run, in_order
from pela_vl.experiments.scales import Scale
from pela_vl.experiments.tables import Column, Table, TableRow


@dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        values: one per seed that is done.
        paper: the printed figure; None if there is none.
        wanted: number of seeds asked for.
    """

    values: tuple[float, ...]
    paper: float | None
    wanted: int = 1

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None with fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def show(self) -> str:
        if self.mean is None:
            return "-"
        text = f"{self.mean:.1f}" + ("" if self.spread is None else f" ± {self.spread:.1f}")
        return text if len(self.values) >= self.wanted else f"{text} ({len(self.values)} of {self.wanted} seeds)"


@dataclass(frozen=True)
class Line:
    """A row with its results: cells as the table's columns; parameters and GFLOPs a sample, None before there is a model."""

    row: TableRow
    cells: tuple[Cell, ...]
    parameters: int | None
    gflops: float | None


@dataclass(frozen=True)
class Found:
    """A table with its results.

    Attributes:
        seconds: spent on its runs, summed, including runs that other tables use too.
        threads: different numbers of threads that the runs had.
    """

    table: Table
    lines: tuple[Line, ...]
    seeds: tuple[int, ...]
    seconds: float
    threads: tuple[int, ...]


def collect(table: Table, scale: Scale, seeds: Sequence[int], grid: Grid) -> Found:
    """Read the results of a table's runs. A run that is not done leaves its cell without that seed.

    Args:
        table: the table.
        scale: names its runs.
        seeds: to be read.
        grid: says which runs are done.
    """
    lines: list[Line] = []
    runs: dict[str, Run] = {}
    for row in table.rows:
        cells = []
        for column in table.columns:
            wanted = () if column.task in row.without else seeds
            by_name = {run.name: run for run in (scale.run(column.task, row.variant, seed) for seed in wanted)}
            runs |= by_name
            paper = row.paper.get(column.paper) if column.paper else None
            values = (_value(scale, column, run, grid) for run in by_name.values())
            cells.append(Cell(tuple(value for value in values if value is not None), paper, len(by_name)))
        lines.append(Line(row, tuple(cells), *_cost(scale, row, seeds, grid)))
    records = [grid.record(run) for run in in_order(runs.values())]
    threads = {record["threads"] for record in records if "threads" in record}
    seconds = sum(record.get("seconds", 0.0) for record in records)
    return Found(table, tuple(lines), tuple(seeds), seconds, tuple(sorted(threads)))


def _value(scale: Scale, column: Column, run: Run, grid: Grid) -> float | None:
    if column.metric is None or not grid.done(run):
        return None
    file = scale.root / run.name / scale.tasks[column.task].records[column.split]
    value = json.loads(file.read_text(encoding="utf-8"))["metrics"].get(column.metric)
    return None if value is None else value * column.scaled


def _cost(scale: Scale, row: TableRow, seeds: Sequence[int], grid: Grid) -> tuple[int | None, float | None]:
    """Parameters, and GFLOPs a sample, of the model as it is deployed, before a task adds its head."""
    path, needs = scale.pretrained(row.variant, seeds[0])
    header = read_header(path) if path.is_file() and all(grid.done(run) for run in needs) else None
    if header is None:
        return None, None  # not there yet, or a published file: tasks/efficiency.py counts those
    merged = [change for change in row.variant.tune if change.startswith("model.token_merging=")]
    if merged:
        tokens = int(merged[0].split("=")[1].format(**scale.numbers))
        header.config = replace(header.config, token_merging=tokens)
    return count_parameters(deployed(header)), sample_flops(header).layers / 1e9


def as_csv(found: Found) -> str:
    """One line a row and column: cost, mean, deviation, how many seeds, their values, the paper's figure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "parameters", "gflops", "column", "mean", "spread", "seeds", "values", "paper"])
    for line in found.lines:
        for column, cell in zip(found.table.columns, line.cells, strict=True):
            numbers = ["" if value is None else f"{value:.4f}" for value in (cell.mean, cell.spread)]
            values = " ".join(f"{value:.4f}" for value in cell.values)
            cost = ["" if value is None else value for value in (line.parameters, line.gflops)]
            paper = "" if cell.paper is None else cell.paper
            writer.writerow([line.row.label, *cost, column.head, *numbers, len(cell.values), values, paper])
    return stream.getvalue()


def as_markdown(found: Found) -> str:
    """The table in percent, the paper's figures in separate columns, and how often the orders of rows agree."""
    columns = found.table.columns
    printed = [any(line.cells[place].paper is not None for line in found.lines) for place in range(len(columns))]
    heads = ["", "parameters", "GFLOPs in layers"]
    for column, known in zip(columns, printed, strict=True):
        heads += [column.head, "paper"] if known else [column.head]
    rows = []
    for line in found.lines:
        cells = [line.row.label]
        cells += ["-" if line.parameters is None else f"{line.parameters:,}"]
        cells += ["-" if line.gflops is None else f"{line.gflops:.3g}"]
        for cell, known in zip(line.cells, printed, strict=True):
            cells.append(cell.show())
            if known:
                cells.append("-" if cell.paper is None else f"{cell.paper:.4g}")
        rows.append(cells)
    lines = [" | ".join(["", *cells, ""]).strip() for cells in [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]]
    return "\n".join([f"**{found.table.title}**", "", *lines, "", *orders(found)])


def orders(found: Found) -> list[str]:
    """A sentence a column that has figures of the paper; see `order`."""
    columns = enumerate(found.table.columns)
    lines = [
        order(column.head, [(line.row.label, line.cells[place]) for line in found.lines]) for place, column in columns
    ]
    return [line for line in lines if line]


def order(head: str, cells: Sequence[tuple[str, Cell]]) -> str:
    """A sentence of a column: how many pairs of rows are in the paper's order, and which are not; empty without two figures.

    A pair that the spread of seeds does not separate (difference below the larger of the two) counts for neither.
    """
    known = [
        (label, cell, cell.mean, cell.paper)
        for label, cell in cells
        if cell.paper is not None and cell.mean is not None
    ]
    if not known[1:]:
        return ""
    agree, against, open_ = 0, [], 0
    for (first, one, one_mean, one_paper), (second, two, two_mean, two_paper) in combinations(known, 2):
        ours, theirs = one_mean - two_mean, one_paper - two_paper
        noise = max(one.spread or 0.0, two.spread or 0.0)
        if abs(ours) <= noise or not theirs:
            open_ += 1
        elif (ours > 0) == (theirs > 0):
            agree += 1
        else:
            against.append(f"{first} {'above' if ours > 0 else 'below'} {second}")
    text = f"{head}: {agree} of {agree + len(against) + open_} pairs of rows as in the paper"
    text += f", {open_} not separated by the seeds" if open_ else ""
    text += " (one seed: noise unknown)" if max(len(cell.values) for _, cell, *_ in known) < 2 else ""
    return f"- {text}" + (f"; otherwise: {', '.join(against)}" if against else "")


def write(found: Found, text: str, folder: Path) -> list[Path]:
    """Write <table>.csv and <table>.md.

    Args:
        found: the table's results.
        text: content of the Markdown file.
        folder: where the files go.

    Returns:
        Their paths.
    """
    paths = []
    for suffix, content in ((".csv", as_csv(found)), (".md", text + "\n")):
        paths.append(folder / (found.table.name + suffix))
        with atomic_write(paths[-1], "w") as stream:
            stream.write(content)
    return paths
