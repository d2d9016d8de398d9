"""The report's tables and key figures: what stands in each cell; the page's templates say how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pela_vl.report.figures import count, difference, percent, significant
from pela_vl.report.schema import RECALLS, Demo, Layer, Task

_NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Tile:
    """A model's key figure with two lines under it; css: the class of its colour."""

    css: str
    name: str
    value: str
    text: str
    size: str


@dataclass(frozen=True)
class Cell:
    """small: a second line under the value, or "". bar: its length in percent, or None."""

    value: str
    small: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Row:
    """css: the class of a model's colour; "" for a row that is no model's."""

    css: str
    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Body:
    """Rows under a title of their own, or ""."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    heads: Sequence[str]
    bodies: Sequence[Body]


def key_figures(run: Demo) -> list[Tile]:
    """A tile a model: its mean recall, the difference to the teacher's, and its size."""
    teacher = run.models[0]
    tiles = []
    for place, model in enumerate(run.models):
        size = f"{count(model.params, teacher.params)} parameters"
        text = "mean recall zero-shot"
        if place:
            text += f", {difference(model.zero_shot['mean'] - teacher.zero_shot['mean'])} points against the teacher"
            size += f", {percent(model.params / teacher.params, 0)} of the teacher"
        if model.fine_tuned and teacher.fine_tuned:
            tuned = model.fine_tuned["mean"]
            text += f"; {tuned:.1f} % fine-tuned"
            text += f" ({difference(tuned - teacher.fine_tuned['mean'])})" if place else ""
        tiles.append(Tile(f"m{place}", model.name, f"{model.zero_shot['mean']:.1f} %", text, size))
    return tiles


def cost_table(run: Demo) -> Table:
    """Size, operations and speed of each model, with the share of the teacher's under each figure."""
    teacher = run.models[0]
    rows = []
    for place, model in enumerate(run.models):
        fraction = model.params / teacher.params
        linear = model.linear_params / teacher.linear_params if teacher.linear_params else 1.0
        cells = [
            Cell(count(model.params, teacher.params), bar=100 * min(fraction, 1)),
            Cell(percent(fraction)),
            _versus(count(model.linear_params, teacher.linear_params), percent(linear), place),
            _versus(significant(model.gflops), _ratio(model.gflops, teacher.gflops), place),
            _versus(significant(model.images_per_s), _ratio(model.images_per_s, teacher.images_per_s), place),
        ]
        rows.append(Row(f"m{place}", model.name, cells))
    heads = ["Model", "Parameters", "of the teacher", "in Linear layers", "GFLOPs per pair", "images/s"]
    return Table(heads, [Body("", rows)])


def recall_table(run: Demo) -> Table:
    """Zero-shot and fine-tuned recall, with the difference to the teacher under each figure."""
    bodies = []
    stages: list[tuple[str, Sequence[Mapping[str, float] | None]]]
    stages = [("Zero-shot", [m.zero_shot for m in run.models]), ("Fine-tuned", [m.fine_tuned for m in run.models])]
    for stage, results in stages:
        if not any(results):
            continue
        rows = []
        for place, (model, recall) in enumerate(zip(run.models, results, strict=True)):
            versus = results[0] or {}
            cells = [_points(recall[name] if recall else None, versus.get(name), place) for name in RECALLS]
            rows.append(Row(f"m{place}", model.name, cells))
        bodies.append(Body(stage, rows))
    return Table(["Recall, %", "TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "mean"], bodies)


def task_table(task: Task) -> Table:
    """A task's percentages, with the difference to the teacher under each figure."""
    reference = next(iter(task.rows.values()))
    rows = []
    for place, (model, values) in enumerate(task.rows.items()):
        cells = [_points(value, versus, place) for value, versus in zip(values, reference, strict=True)]
        rows.append(Row(f"m{place}", model, cells))
    return Table([f"{task.name}, %", *task.columns], [Body("", rows)])


def layer_table(layers: Sequence[Layer]) -> Table:
    """Shape, rank, weights, error and kept energy of every layer."""
    rows = []
    for layer in layers:
        dense = layer.in_features * layer.out_features
        kept = layer.rank * (layer.in_features + layer.out_features)
        shape = f"{layer.in_features} \N{RIGHTWARDS ARROW} {layer.out_features}"
        error, energy = f"{layer.rel_error:.3f}", percent(layer.energy_kept)
        values = [shape, str(layer.rank), f"{dense:,}", f"{kept:,}", error, energy]
        rows.append(Row("", layer.name, [Cell(value) for value in values]))
    heads = [
        "Layer",
        "in \N{RIGHTWARDS ARROW} out",
        "rank",
        "weights dense",
        "low rank",
        "relative error",
        "energy kept",
    ]
    return Table(heads, [Body("", rows)])


def _points(value: float | None, reference: float | None, place: int) -> Cell:
    """A percentage and its difference to the teacher's."""
    if value is None:
        return Cell(_NONE)
    return _versus(f"{value:.1f}", "" if reference is None else difference(value - reference), place)


def _versus(value: str, small: str, place: int) -> Cell:
    """A figure with a second line; the teacher, compared with itself, has none."""
    return Cell(value, small if place else "")


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}\N{MULTIPLICATION SIGN}" if reference > 0 else ""
