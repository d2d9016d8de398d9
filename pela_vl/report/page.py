"""The report page: one HTML file that needs nothing but itself. Its words and tags are in templates/."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pela_vl.base.files import atomic_write
from pela_vl.report import charts, tables
from pela_vl.report.figures import percent
from pela_vl.report.html import Figure, render_page
from pela_vl.report.layers import layer_kinds
from pela_vl.report.ranges import span
from pela_vl.report.schema import Demo, Point, parse_demo

_TERMS = {
    "itc": "ITC, image-text contrast",
    "itm": "ITM, image-text matching",
    "mlm": "MLM, masked words",
    "fd": "FD, feature distillation",
    "rwp": "RWP, weight perturbation",
}
_FINE_TUNE = "fine-tune"
_FLOORS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


def write_report(demo: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a run (see `schema`) as one self-contained HTML page, completely or not at all.

    Raises:
        UserError: Naming the place where the run does not fit the schema, or when `path` cannot be written.
    """
    page = render(parse_demo(demo))
    with atomic_write(path, "w") as stream:
        stream.write(page)


def render(run: Demo) -> str:
    """The page's text."""
    return render_page(
        "page.html",
        run.command,
        run.wall_seconds,
        run.machine,
        run=run,
        kept=percent(run.models[-1].params / run.models[0].params, 0),
        tiles=tables.key_figures(run),
        costs=tables.cost_table(run),
        recalls=tables.recall_table(run),
        recall_charts=_recall(run),
        task_tables=[tables.task_table(task) for task in run.tasks],
        loss_charts={
            name: _terms(points) for name, points in run.curves.items() if points and not _is_fine_tuning(name)
        },
        wide_charts=_wide(run),
        **_layers(run),
    )


def _recall(run: Demo) -> list[Figure]:
    zero_shot = [model.zero_shot["mean"] for model in run.models]
    fine_tuned = [model.fine_tuned["mean"] if model.fine_tuned else None for model in run.models]
    low, high = span([value for value in [*zero_shot, *fine_tuned] if value is not None], 0.15)
    y = max(low, 0.0), min(high, 100.0)
    figures = [Figure("Zero-shot", charts.recall_chart(run.models, zero_shot, y, "Zero-shot recall and size"))]
    if any(value is not None for value in fine_tuned):
        chart = charts.recall_chart(run.models, fine_tuned, y, "Fine-tuned recall and size")
        figures.append(Figure("Fine-tuned, all with the same steps", chart))
    return figures


def _is_fine_tuning(curve: str) -> bool:
    return curve.casefold().startswith(_FINE_TUNE)


def _terms(points: Sequence[Point]) -> list[Figure]:
    """The total and each term over the steps; a term with its part of the total at the end."""
    steps = [point.step for point in points]
    figures = [Figure("Total loss", charts.term_chart("Total loss", steps, [point.loss for point in points], "m0"))]
    for term in dict.fromkeys(name for point in points for name in point.terms):
        some = [point for point in points if term in point.terms]
        title, values = _TERMS.get(term, term), [point.terms[term] for point in some]
        fraction = charts.share_text(values, [point.loss for point in some])
        figures.append(Figure(title, charts.term_chart(title, [point.step for point in some], values), fraction))
    return figures


def _wide(run: Demo) -> list[Figure]:
    """Recall during pre-training, and the losses of fine-tuning."""
    figures = []
    if run.evaluations:
        figures.append(Figure("Recall during pre-training", charts.evaluations_chart(run), run.evaluations_note))
    tunings = [(name, points) for name, points in run.curves.items() if points and _is_fine_tuning(name)]
    if tunings:
        losses = {
            name[len(_FINE_TUNE) :].strip() or name: (_model_class(run, name, place), points)
            for place, (name, points) in enumerate(tunings)
        }
        figures.append(Figure("Fine-tuning for retrieval", charts.losses_chart(losses, "Fine-tuning loss")))
    return figures


def _model_class(run: Demo, curve: str, place: int) -> str:
    """CSS class of the model that a curve's name mentions; by position where it mentions none."""
    words = set(curve.casefold().split())
    for index, model in enumerate(run.models):
        if model.name.casefold().split()[0] in words:
            return f"m{index}"
    return f"m{place}"


def _layers(run: Demo) -> dict[str, Any]:
    """What the page says of single layers: spectra by tower, errors, and a table of all."""
    kinds = layer_kinds(run.layers)
    ratios = [v / max(layer.spectrum) for layer in run.layers for v in layer.spectrum if v > 0]
    floor = next((tick for tick in _FLOORS if tick <= min(ratios, default=1)), _FLOORS[-1])
    spectra = {
        tower: [
            Figure(kind.title, charts.spectrum_chart(kind, floor), charts.energy_text(kind))
            for kind in kinds
            if kind.tower == tower
        ]
        for tower in dict.fromkeys(kind.tower for kind in kinds)
    }
    strip = charts.error_strip(kinds) if kinds else ""
    return {"floor": f"{floor:g}", "spectra": spectra, "error_strip": strip, "layers": tables.layer_table(run.layers)}
