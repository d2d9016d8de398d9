"""The report page: one self-contained HTML file."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pela_vl.base.files import atomic_write
from pela_vl.report import charts, queries, tables
from pela_vl.report.figures import duration, percent
from pela_vl.report.layers import layer_kinds
from pela_vl.report.plots import span
from pela_vl.report.schema import Demo, Point, parse_demo
from pela_vl.report.style import CSS

_TERMS = {
    "itc": "ITC, image-text contrast",
    "itm": "ITM, image-text matching",
    "mlm": "MLM, masked words",
    "fd": "FD, feature distillation",
    "rwp": "RWP, weight perturbation",
}
_FINE_TUNE = "fine-tune"
_UNCHOSEN = "As they fell, not chosen."
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
    """The page as HTML."""
    sections = [_header(run), _recall(run), _tasks(run), _training(run), _spectra(run), _queries(run)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.title)}</title><style>{CSS}</style></head>\n"
        f"<body>{queries.SYMBOLS}<main>\n" + "\n".join(sections) + f"\n</main>\n{_footer(run)}</body></html>\n"
    )


def _header(run: Demo) -> str:
    kept = percent(run.models[-1].params / run.models[0].params, 0)
    lead = (
        "A pre-trained image-text model, the teacher, had its large weight matrices cut into pairs of thin low-rank "
        f"factors by singular value decomposition, which leaves {kept} of its parameters. PELA then pre-trains the "
        "small model for a short while with the teacher as its guide, and all are compared on finding the captions of "
        f"an image and the image of a caption among {run.images:,} images and {run.texts:,} captions."
    )
    legend = (
        "GFLOPs: 10<sup>9</sup> floating-point operations of one forward pass of an image-text pair. Images/s: "
        "measured on the machine named below. TR: text retrieved for an image; IR: image retrieved for a text; @k: a "
        "right one is among the first k. Small figures compare with the teacher: a fraction, or points of recall."
    )
    return (
        f'<h1>{escape(run.title)}</h1><p class="lead">{lead}</p>{tables.key_figures(run)}'
        f"<h2>The models</h2>{tables.cost_table(run)}{tables.recall_table(run)}<p><small>{legend}</small></p>"
    )


def _recall(run: Demo) -> str:
    zero_shot = [model.zero_shot["mean"] for model in run.models]
    fine_tuned = [model.fine_tuned["mean"] if model.fine_tuned else None for model in run.models]
    low, high = span([value for value in [*zero_shot, *fine_tuned] if value is not None], 0.15)
    y = max(low, 0.0), min(high, 100.0)
    figures = [_figure("Zero-shot", "", charts.recall_chart(run.models, zero_shot, y, "Zero-shot recall and size"))]
    if any(value is not None for value in fine_tuned):
        chart = charts.recall_chart(run.models, fine_tuned, y, "Fine-tuned recall and size")
        figures.append(_figure("Fine-tuned, all with the same steps", "", chart))
    text = "The mean of the six recalls against size."
    if len(run.models) == 3:
        text += " The first arrow is the truncation, the second the recovery."
    return f"<h2>Recall against size</h2><p>{text}</p>" + _grid(figures, "pair")


def _tasks(run: Demo) -> str:
    if not run.tasks:
        return ""
    text = "Each model fine-tuned with the same steps. Small figures: points against the teacher."
    return f"<h2>Other tasks</h2><p>{text}</p>" + "".join(tables.task_table(task) for task in run.tasks)


def _training(run: Demo) -> str:
    parts = []
    for name, points in run.curves.items():
        if not name.casefold().startswith(_FINE_TUNE) and points:
            parts.append(f"<h3>{escape(name)}</h3>" + _grid(_term_figures(points), "grid4"))
    wide = []
    if run.evaluations:
        wide.append(_figure("Recall during pre-training", run.evaluations_note, charts.evaluations_chart(run)))
    tuning = {
        name[len(_FINE_TUNE) :].strip() or name: (_model_class(run, name, place), points)
        for place, (name, points) in enumerate(
            (name, points) for name, points in run.curves.items() if name.casefold().startswith(_FINE_TUNE) and points
        )
    }
    if tuning:
        wide.append(_figure("Fine-tuning for retrieval", "", charts.losses_chart(tuning, "Fine-tuning loss")))
    if wide:
        parts.append(_grid(wide, "pair"))
    if not parts:
        return ""
    text = (
        "Lines are running means; pale bands span the single steps. Terms are weighted as they enter the total, each "
        "on its own scale."
    )
    return f"<h2>Losses</h2><p>{text}</p>" + "".join(parts)


def _term_figures(points: Sequence[Point]) -> list[str]:
    steps = [point.step for point in points]
    figures = [
        _figure("Total loss", "", charts.term_chart("Total loss", steps, [point.loss for point in points], "m0"))
    ]
    for term in dict.fromkeys(name for point in points for name in point.terms):
        some = [point for point in points if term in point.terms]
        title = _TERMS.get(term, term)
        chart = charts.term_chart(title, [point.step for point in some], [point.terms[term] for point in some])
        figures.append(_figure(title, "", chart))
    return figures


def _model_class(run: Demo, curve: str, place: int) -> str:
    """CSS class of the model that a curve's name mentions; by position where it mentions none."""
    words = set(curve.casefold().split())
    for index, model in enumerate(run.models):
        if model.name.casefold().split()[0] in words:
            return f"m{index}"
    return f"m{place}"


def _spectra(run: Demo) -> str:
    if not run.layers:
        return ""
    kinds = layer_kinds(run.layers)
    ratios = [v / max(layer.spectrum) for layer in run.layers for v in layer.spectrum if v > 0]
    floor = next((tick for tick in _FLOORS if tick <= min(ratios, default=1)), _FLOORS[-1])
    parts = []
    for tower in dict.fromkeys(kind.tower for kind in kinds):
        figures = [
            _figure(kind.title, charts.energy_text(kind), charts.spectrum_chart(kind, floor))
            for kind in kinds
            if kind.tower == tower
        ]
        parts.append(f"<h3>{escape(tower)}</h3>" + _grid(figures, "grid4"))
    text = (
        "Singular values of the teacher's weight matrices, divided by the largest, on a logarithmic scale: one line a "
        "layer, darker towards the output. The tinted part is kept; what falls outside is what truncation loses. "
        f"Values below {floor:g} are not drawn. Energy: the sum of squared singular values."
    )
    norm = "\N{DOUBLE VERTICAL LINE}"
    errors = (
        f"Relative error of each layer after truncation, {norm}W \N{MINUS SIGN} UV{norm} / {norm}W{norm} (Frobenius "
        "norm): 0 is a perfect copy, 1 nothing left. One dot a layer."
    )
    table = f"<details><summary>All {len(run.layers)} layers</summary>{tables.layer_table(run.layers)}</details>"
    return (
        f"<h2>What was cut off</h2><p>{text}</p>{''.join(parts)}"
        f"<h2>Error of every layer</h2><p>{errors}</p>{charts.error_strip(kinds)}{table}"
    )


def _queries(run: Demo) -> str:
    parts = []
    remark = escape(f"{_UNCHOSEN} {run.queries_note}".strip())
    if run.image_queries:
        text = "Test images with their own captions, and the first captions that each model retrieved, best first."
        parts.append(f"<h2>Captions for an image</h2><p>{text} {remark}</p>")
        parts.append(queries.image_queries(run.image_queries, run.models))
    if run.text_queries:
        text = "Test captions and the first images that each model retrieved, best on the left."
        parts.append(f"<h2>Images for a caption</h2><p>{text} {remark}</p>")
        parts.append(queries.text_queries(run.text_queries, run.models))
    return "".join(parts)


def _footer(run: Demo) -> str:
    machine = dict(run.machine)
    cpu, cores = machine.pop("cpu", "CPU unknown"), machine.pop("cores", "?")
    versions = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [
        f"Made by <code>{escape(run.command)}</code> in {duration(run.wall_seconds)}.",
        f"{escape(cpu)}, {escape(cores)} cores" + (f"; {escape(versions)}." if versions else "."),
    ]
    return "<footer>" + "".join(f"<p>{line}</p>" for line in lines) + "</footer>"


def _figure(title: str, subtitle: str, drawing: str) -> str:
    small = f"<small>{escape(subtitle)}</small>" if subtitle else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{small}</figcaption>{drawing}</figure>"


def _grid(figures: Sequence[str], css: str) -> str:
    return f'<div class="{css}">{"".join(figures)}</div>'
