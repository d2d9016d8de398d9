"""Plots of the grids' results, drawn by matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pela_vl.base.drawing import new_figure, save_figure
from pela_vl.experiments.results import Cell, Found
from pela_vl.experiments.runs import Grid
from pela_vl.experiments.scales import Scale
from pela_vl.experiments.variants import BEYOND, FD_ONLY, RWP_SWEEP, RWP_WEIGHTS, TASK_ONLY
from pela_vl.training.run_log import read_log

if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.figure import Figure

OURS, PAPER = "#1b5e8c", "#c2571a"
_COLOURS = ("#1b5e8c", "#c2571a", "#4f7f2f", "#8a3d7a")


def draw(found: Found, scale: Scale, grid: Grid, folder: Path) -> Path:
    """Write <table>.png from the results that are there.

    Args:
        found: the table's results.
        scale: names the pre-training runs, whose logs the plot "recovery" reads.
        grid: says which of them are done.
        folder: where the file goes.

    Returns:
        Its path.

    Raises:
        UserError: Without matplotlib.
    """
    figure = new_figure(6.4, 3.8)
    if found.table.plot == "recovery":
        recovery(figure, recoveries(scale, found.seeds, grid))
    else:
        {"differences": differences, "compressions": compressions, "weights": rwp_weights}[found.table.plot](
            figure, found
        )
    return save_figure(figure, folder / f"{found.table.name}.png")


def differences(figure: "Figure", found: Found) -> None:
    """One panel per column: each row's difference to the dense model, in points.

    Ours is filled, with the standard deviation over seeds as a bar; the paper's is hollow.
    """
    columns, lines = found.table.columns, found.lines
    wide = min(len(columns), 4)
    high = -(-len(columns) // wide)
    figure.set_size_inches(2.9 * wide + 1.2, (0.34 * len(lines) + 0.9) * high + 0.4)
    panels = figure.subplots(high, wide, squeeze=False, sharey=True).flatten()
    for place, (panel, column) in enumerate(zip(panels, columns, strict=False)):
        reference = lines[0].cells[place]
        for height, line in enumerate(lines):
            cell = line.cells[place]
            if cell.paper is not None and reference.paper is not None:
                panel.plot(cell.paper - reference.paper, height + 0.16, "o", mfc="none", mec=PAPER, ms=5)
            if cell.mean is not None and reference.mean is not None:
                shift = cell.mean - reference.mean
                panel.errorbar(shift, height - 0.16, xerr=cell.spread or 0, fmt="o", color=OURS, ms=5, lw=1.2)
        panel.axvline(0, color="#999999", lw=0.8)
        panel.set_title(column.head, fontsize=9)
        panel.set_yticks(range(len(lines)), [line.row.label for line in lines], fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    for panel in panels[len(columns) :]:
        panel.set_visible(False)
    figure.supxlabel(
        "points against the dense model: filled here (bar: deviation over seeds), hollow the paper", fontsize=8
    )


def compressions(figure: "Figure", found: Found) -> None:
    """Each metric over kappa, the dense model's level dashed; one panel before and one after fine-tuning."""
    figure.set_size_inches(8.6, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    kappas = [line.row.variant.kappa for line in found.lines[1:]]
    half = len(found.table.columns) // 2
    titles = ("after PELA's pre-training", "after fine-tuning")
    for place, column in enumerate(found.table.columns):
        panel, colour = panels[place // half], _COLOURS[place % half]
        cells = [line.cells[place] for line in found.lines]
        known = [(kappa, cell) for kappa, cell in zip(kappas, cells[1:], strict=True) if cell.mean is not None]
        if known:
            across, heights = [kappa for kappa, _ in known], [cell.mean for _, cell in known]
            spreads = [cell.spread or 0 for _, cell in known]
            label = column.head.split(" ", 1)[1]
            panel.errorbar(across, heights, spreads, color=colour, marker="o", ms=4, lw=1.4, capsize=2, label=label)
        if cells[0].mean is not None:
            panel.axhline(cells[0].mean, color=colour, lw=0.9, ls="--")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_xscale("log")
        panel.set_xticks(kappas, [f"{kappa:g}" for kappa in kappas], fontsize=8)
        panel.minorticks_off()
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("kappa (dashed: the dense model)", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=8, frameon=False, loc="lower left")
    panels[0].set_ylabel("recall, %", fontsize=8)


def rwp_weights(figure: "Figure", found: Found) -> None:
    """Mean recall over RWP's weight, a curve a form of it; alone on the left and beside FD on the right.

    Dashed is the same pre-training without RWP, with its standard deviation over seeds tinted.
    """
    figure.set_size_inches(8.6, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    cells = {line.row.variant: line.cells[-1] for line in found.lines}
    nothing = Cell((), None)
    for panel, with_fd, without in ((panels[0], False, TASK_ONLY), (panels[1], True, FD_ONLY)):
        level = cells.get(without, nothing)
        if level.mean is not None:
            panel.axhline(level.mean, color="#666666", lw=0.9, ls="--", label="without RWP")
            panel.axhspan(
                level.mean - (level.spread or 0), level.mean + (level.spread or 0), color="#666666", alpha=0.12
            )
        for (form, weights), colour in zip(RWP_WEIGHTS.items(), _COLOURS, strict=False):
            swept = [(weight, cells.get(RWP_SWEEP[form, weight, with_fd], nothing)) for weight in weights]
            known = [(weight, cell.mean, cell.spread or 0) for weight, cell in swept if cell.mean is not None]
            if known:
                across, heights, spreads = zip(*known, strict=True)
                panel.errorbar(across, heights, spreads, color=colour, marker="o", ms=4, lw=1.4, capsize=2, label=form)
        panel.set_xscale("log")
        panel.set_title("FD + RWP" if with_fd else "RWP alone", fontsize=9)
        panel.set_xlabel("weight of RWP", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, frameon=False, loc="lower left")
    panels[0].set_ylabel("recall after pre-training, mean of six, %", fontsize=8)


def recovery(figure: "Figure", curves: dict[str, dict[int, float]]) -> None:
    """Validation recall over pre-training steps, one curve per kind of factors, averaged over seeds."""
    panel = figure.subplots()
    for way, curve in curves.items():
        if curve:
            panel.plot(list(curve), list(curve.values()), marker="o", ms=3.5, lw=1.4, label=way)
    panel.set_xlabel("steps of PELA's pre-training", fontsize=8)
    panel.set_ylabel("validation recall by ITC alone, mean of six, %", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    if panel.lines:
        panel.legend(fontsize=8, frameon=False)


def recoveries(scale: Scale, seeds: Sequence[int], grid: Grid) -> dict[str, dict[int, float]]:
    """Mean validation recall after each number of pre-training steps, averaged over seeds.

    Args:
        scale: names the runs.
        seeds: only those whose pre-training is done for every kind of factors count, so that all curves have the same
            seeds.
        grid: says which runs are done.

    Returns:
        Recall in percent by step, by kind of factors (a key of BEYOND).
    """
    runs = {way: [scale.pretrained(variant, seed)[1][0] for seed in seeds] for way, variant in BEYOND.items()}
    complete = [place for place in range(len(seeds)) if all(grid.done(per_seed[place]) for per_seed in runs.values())]
    found: dict[str, dict[int, float]] = {}
    for way, per_seed in runs.items():
        points: dict[int, list[float]] = {}
        for place in complete:
            for line in read_log(per_seed[place].makes[0].parent / "log.jsonl"):
                if line.get("event") == "evaluation":
                    points.setdefault(line["step"] + 1, []).append(line["mean"])
        found[way] = {step: sum(values) / len(values) for step, values in sorted(points.items())}
    return found


def rwp_shares(scale: Scale, seeds: Sequence[int], grid: Grid) -> list[str]:
    """A sentence a variant of the sweep: RWP's term and the whole loss, both averaged over the last quarter of the steps.

    Args:
        scale: names the pre-training runs.
        seeds: those whose run is done count.
        grid: says which are done.
    """
    lines = []
    for (form, weight, with_fd), variant in RWP_SWEEP.items():
        terms, losses = [], []
        for run in (scale.pretrained(variant, seed)[1][0] for seed in seeds):
            if grid.done(run):
                steps = [line for line in read_log(run.makes[0].parent / "log.jsonl") if "event" not in line]
                last = steps[-max(len(steps) // 4, 1) :]
                terms += [line["terms"]["rwp"] for line in last]
                losses += [line["loss"] for line in last]
        if losses:
            name, term, loss = f"{'FD + ' if with_fd else ''}RWP {form} {weight:g}", _mean(terms), _mean(losses)
            lines.append(f"- {name}: the term is {term:.3g} of a loss of {loss:.3g} at the end ({term / loss:.1%})")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def steps_saved(curves: dict[str, dict[int, float]]) -> list[str]:
    """For each kind of factors: the number of steps to reach the plain factors' final recall, by linear interpolation."""
    plain = curves.get("plain", {})
    if not plain:
        return []
    last, goal = max(plain), plain[max(plain)]
    lines = []
    for way, curve in curves.items():
        if way == "plain" or not curve:
            continue
        reached = _crossing(curve, goal)
        if reached is None:
            text = f"ends at {curve[max(curve)]:.1f} and does not get there"
        else:
            text = f"is there after {reached:.0f} steps ({1 - reached / last:.0%} fewer)"
        lines.append(f"- plain factors reach a validation mean of {goal:.1f} in {last} steps; {way}: {text}")
    return lines


def _crossing(curve: dict[int, float], goal: float) -> float | None:
    before = None
    for step, value in curve.items():
        if value >= goal:
            if before is None or before[1] >= value:
                return float(step)
            fraction = (goal - before[1]) / (value - before[1])
            return before[0] + fraction * (step - before[0])
        before = (step, value)
    return None
