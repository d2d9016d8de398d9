"""The report's tables and key figures as HTML."""

from collections.abc import Mapping, Sequence
from html import escape

from pela_vl.report.figures import count, difference, percent, significant
from pela_vl.report.schema import RECALLS, Demo, Layer, Task


def key_figures(run: Demo) -> str:
    """One tile per model: its size relative to the teacher and its mean recall."""
    teacher = run.models[0]
    tiles = []
    for place, model in enumerate(run.models):
        size = f"{count(model.params, teacher.params)} parameters"
        if place == 0:
            value, text = f"{model.zero_shot['mean']:.1f} %", "mean recall zero-shot"
        else:
            value = f"{difference(model.zero_shot['mean'] - teacher.zero_shot['mean'])} points"
            text = "mean recall zero-shot, against the teacher"
            size += f", {percent(model.params / teacher.params, 0)} of the teacher"
        if model.fine_tuned and teacher.fine_tuned:
            tuned = model.fine_tuned["mean"]
            text += f" ({difference(tuned - teacher.fine_tuned['mean']) if place else f'{tuned:.1f} %'} fine-tuned)"
        lines = f"<span>{escape(text)}</span><span>{escape(size)}</span>"
        tiles.append(f'<div class="key m{place}"><h4>{escape(model.name)}</h4><b>{value}</b>{lines}</div>')
    return f'<div class="keys">{"".join(tiles)}</div>'


def cost_table(run: Demo) -> str:
    teacher = run.models[0]
    rows = []
    for place, model in enumerate(run.models):
        fraction = model.params / teacher.params
        linear = model.linear_params / teacher.linear_params if teacher.linear_params else 1.0
        bar = f'<span class="bar"><i style="width:{100 * min(fraction, 1):.1f}%"></i></span>'
        cells = [
            count(model.params, teacher.params) + bar,
            percent(fraction),
            f"{count(model.linear_params, teacher.linear_params)}{_small(percent(linear), place)}",
            f"{significant(model.gflops)}{_small(_ratio(model.gflops, teacher.gflops), place)}",
            f"{significant(model.images_per_s)}{_small(_ratio(model.images_per_s, teacher.images_per_s), place)}",
        ]
        rows.append(_row(place, model.name, cells))
    heads = ["Model", "Parameters", "of the teacher", "in Linear layers", "GFLOPs per pair", "images/s"]
    return _table(heads, "<tbody>" + "".join(rows) + "</tbody>")


def recall_table(run: Demo) -> str:
    """Zero-shot and fine-tuned recall, with the difference to the teacher under each figure."""
    bodies = []
    stages: list[tuple[str, Sequence[Mapping[str, float] | None]]]
    stages = [("Zero-shot", [m.zero_shot for m in run.models]), ("Fine-tuned", [m.fine_tuned for m in run.models])]
    for stage, results in stages:
        if not any(results):
            continue
        rows = [f'<tr class="group"><th colspan="{1 + len(RECALLS)}" scope="rowgroup">{stage}</th></tr>']
        for place, (model, recall) in enumerate(zip(run.models, results, strict=True)):
            if recall is None:
                cells = ["\N{EN DASH}"] * len(RECALLS)
            else:
                versus = results[0] if place else None
                cells = [
                    f"{recall[name]:.1f}" + (_small(difference(recall[name] - versus[name]), 1) if versus else "")
                    for name in RECALLS
                ]
            rows.append(_row(place, model.name, cells))
        bodies.append("<tbody>" + "".join(rows) + "</tbody>")
    heads = ["Recall, %", "TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "mean"]
    return _table(heads, "".join(bodies))


def task_table(task: Task) -> str:
    """A task's percentages, with the difference to the teacher under each figure."""
    reference = next(iter(task.rows.values()))
    rows = []
    for place, (model, values) in enumerate(task.rows.items()):
        cells = []
        for value, versus in zip(values, reference, strict=True):
            if value is None:
                cells.append("\N{EN DASH}")
            else:
                small = "" if versus is None else _small(difference(value - versus), place)
                cells.append(f"{value:.1f}{small}")
        rows.append(_row(place, model, cells))
    return _table([f"{task.name}, %", *task.columns], "<tbody>" + "".join(rows) + "</tbody>")


def layer_table(layers: Sequence[Layer]) -> str:
    rows = []
    for layer in layers:
        dense = layer.in_features * layer.out_features
        kept = layer.rank * (layer.in_features + layer.out_features)
        cells = [
            f"{layer.in_features} \N{RIGHTWARDS ARROW} {layer.out_features}",
            str(layer.rank),
            f"{dense:,}",
            f"{kept:,}",
            f"{layer.rel_error:.3f}",
            percent(layer.energy_kept),
        ]
        rows.append(f"<tr><td>{escape(layer.name)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = [
        "Layer",
        "in \N{RIGHTWARDS ARROW} out",
        "rank",
        "weights dense",
        "low rank",
        "relative error",
        "energy kept",
    ]
    return _table(heads, "<tbody>" + "".join(rows) + "</tbody>")


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}\N{MULTIPLICATION SIGN}" if reference > 0 else ""


def _small(text: str, place: int) -> str:
    """A second line under a figure; none for the teacher, which would be compared with itself."""
    return f"<small>{text}</small>" if place and text else ""


def _row(place: int, name: str, cells: Sequence[str]) -> str:
    head = f'<th scope="row" class="dotted m{place}">{escape(name)}</th>'
    return f'<tr class="m{place}">{head}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _table(heads: Sequence[str], bodies: str) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{bodies}</table></div>'
