"""A grid's results as files and as text for the terminal."""

from collections.abc import Sequence

from pela_vl.base.progress import clock
from pela_vl.experiments.plots import draw, recoveries, rwp_shares, steps_saved
from pela_vl.experiments.results import as_markdown, collect, write
from pela_vl.experiments.runs import Grid
from pela_vl.experiments.scales import Scale
from pela_vl.experiments.tables import Table
from pela_vl.experiments.vision_plots import PLOTS, draw_vision


def report(table: Table, scale: Scale, seeds: Sequence[int], grid: Grid) -> str:
    """Write a table's CSV, Markdown and plot into the scale's folder.

    Args:
        table: the table.
        scale: names its runs and the folder.
        seeds: over which means and deviations are taken.
        grid: says which runs are done.

    Returns:
        The Markdown and the paths of the files.

    Raises:
        UserError: Without matplotlib.
    """
    found = collect(table, scale, seeds, grid)
    text = as_markdown(found)
    if table.plot == "recovery":
        text = "\n".join([text, *steps_saved(recoveries(scale, seeds, grid))])
    if table.plot == "weights":
        text = "\n".join([text, *rwp_shares(scale, seeds, grid)])
    threads = "/".join(map(str, found.threads)) or "no"
    text += f"\n\nSeeds {', '.join(map(str, seeds))}; its runs took {clock(found.seconds)} in sum, on {threads} thread(s) each."
    paths = write(found, text, scale.root)
    paths.append((draw_vision if table.plot in PLOTS else draw)(found, scale, grid, scale.root))
    return f"{text}\n\nwritten: {', '.join(map(str, paths))}"
