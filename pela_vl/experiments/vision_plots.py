"""Figures 1, 2 and 4 of the vision half, drawn by matplotlib without a display."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pela_vl.base.drawing import new_figure, save_figure
from pela_vl.experiments.plots import OURS, PAPER
from pela_vl.experiments.results import Found
from pela_vl.experiments.runs import Grid
from pela_vl.experiments.scales import Scale

if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.figure import Figure

_COLOURS = ("#4b5563", "#c2571a", "#1b5e8c", "#4f7f2f")
_BINS = 30


def draw_vision(found: Found, scale: Scale, grid: Grid, folder: Path) -> Path:
    """<table>.png of what is there.

    Args:
        found: A table whose plot is a key of `PLOTS`.
        scale: Where its runs are.
        grid: Which of them are done.
        folder: Where to draw.
    """
    figure = new_figure(6.4, 3.6)
    PLOTS[found.table.plot](figure, found, scale, grid)
    return save_figure(figure, folder / f"{found.table.name}.png")


def sizes(figure: "Figure", found: Found, scale: Scale, grid: Grid) -> None:
    """Figure 1: top-1 of each model against its parameters, with the deviation over seeds as a bar.

    Args:
        figure: What to draw on.
        found: The table.
        scale: Not read.
        grid: Not read.
    """
    panel = figure.subplots()
    for line, colour in zip(found.lines, _COLOURS, strict=False):
        cell = line.cells[0]
        if line.parameters is not None and cell.mean is not None:
            panel.errorbar(
                line.parameters / 1e6, cell.mean, cell.spread or 0, fmt="o", color=colour, ms=8, label=line.row.label
            )
    panel.set_xlim(left=0)
    panel.set_xlabel("parameters, millions", fontsize=8)
    _style(panel, "top-1, %")


def similarity(figure: "Figure", found: Found, scale: Scale, grid: Grid) -> None:
    """Figure 2: for each model, which share of the classes has which mean cosine between the features of their images.

    Args:
        figure: What to draw on.
        found: The table.
        scale: Where the runs are.
        grid: Which of them are done.
    """
    panel = figure.subplots()
    values = similarities(found, scale, grid)
    every = [value for some in values.values() for value in some]
    if every:
        low, high = min(every), max(every)
        edges = [low + (high - low) * place / _BINS for place in range(_BINS + 1)]
        for (label, some), colour in zip(values.items(), _COLOURS, strict=False):
            if some:
                name = f"{label}: mean {sum(some) / len(some):.3f}"
                shares = [100 / len(some)] * len(some)  # a row of several seeds is as high as one of one
                panel.hist(some, edges, weights=shares, histtype="stepfilled", alpha=0.25, color=colour)
                panel.hist(some, edges, weights=shares, histtype="step", lw=1.6, color=colour, label=name)
    panel.set_xlabel("mean cosine between the features of a class's images", fontsize=8)
    _style(panel, "classes, %" if len(found.seeds) < 2 else f"classes of {len(found.seeds)} seeds, %")


def similarities(found: Found, scale: Scale, grid: Grid) -> dict[str, list[float]]:
    """By row: the mean cosine of every class, of all seeds that are done; a row that draws nothing counts once.

    Args:
        found: The table.
        scale: Where the runs are.
        grid: Which of them are done.
    """
    values: dict[str, list[float]] = {}
    for line in found.lines:
        runs = {run.name: run for run in (scale.run("classify", line.row.variant, seed) for seed in found.seeds)}
        records = [json.loads(run.makes[0].read_text(encoding="utf-8")) for run in runs.values() if grid.done(run)]
        values[line.row.label] = [value for record in records for value in record["class_similarity"].values()]
    return values


def accuracies(figure: "Figure", found: Found, scale: Scale, grid: Grid) -> None:
    """Figure 4: top-1 and top-5 over kappa, the dense model's level dashed.

    Args:
        figure: What to draw on.
        found: The table.
        scale: Not read.
        grid: Not read.
    """
    panel = figure.subplots()
    kappas = [line.row.variant.kappa or 1.0 for line in found.lines[1:]]
    for place, colour in enumerate((OURS, PAPER)):
        head = found.table.columns[place].head
        known = [
            (kappa, line.cells[place].mean or 0.0, line.cells[place].spread or 0.0)
            for kappa, line in zip(kappas, found.lines[1:], strict=True)
            if line.cells[place].mean is not None
        ]
        if known:
            across, means, spreads = zip(*known, strict=True)
            panel.errorbar(across, means, spreads, color=colour, marker="o", ms=4, lw=1.4, capsize=2, label=head)
        dense = found.lines[0].cells[place].mean
        if dense is not None:
            panel.axhline(dense, color=colour, lw=0.9, ls="--")
    panel.set_xscale("log")
    panel.set_xticks(kappas, [f"{kappa:g}" for kappa in kappas], fontsize=8)
    panel.minorticks_off()
    panel.set_xlabel("kappa (dashed: the dense model)", fontsize=8)
    _style(panel, "%")


def _style(panel, label: str) -> None:  # type: ignore[no-untyped-def]  # matplotlib is an extra
    panel.set_ylabel(label, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=8, frameon=False)


PLOTS: dict[str, Callable[["Figure", Found, Scale, Grid], None]] = {
    "sizes": sizes,
    "similarity": similarity,
    "accuracies": accuracies,
}
"""By `Table.plot`."""
