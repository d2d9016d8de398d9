"""The results as plain text, for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from pela_vl.report.figures import count, difference, percent, significant
from pela_vl.report.schema import RECALLS, Demo, Model, Task, parse_demo

_HEADS = {"tr1": "TR@1", "tr5": "TR@5", "tr10": "TR@10", "ir1": "IR@1", "ir5": "IR@5", "ir10": "IR@10", "mean": "mean"}


def format_table(demo: Mapping[str, Any]) -> str:
    """Lay out a run (see `schema`): the cost of each model, then its recall, with the mean's difference to the teacher.

    Recall in percent; TR finds texts for an image, IR images for a text. No line ends in blanks, and the last has no
    line break.

    Raises:
        UserError: Naming the place where the run does not fit the schema.
    """
    run = parse_demo(demo)
    blocks = [_costs(run), _recalls(run, "zero-shot", [model.zero_shot for model in run.models])]
    if any(model.fine_tuned for model in run.models):
        blocks.append(_recalls(run, "fine-tuned", [model.fine_tuned for model in run.models]))
    blocks += [_task(run, task) for task in run.tasks]
    legend = f"Recall in % on {run.images} images and {run.texts} texts; TR: text for an image, IR: image for a text."
    return "\n\n".join(["\n".join(block) for block in blocks] + [legend])


def _costs(run: Demo) -> list[str]:
    teacher = run.models[0]
    rows = [["cost", "params", "of teacher", "in Linears", "GFLOPs/pair", "images/s"]]
    rows += [
        [m.name, count(m.params, teacher.params), *_shares(m, teacher), significant(m.images_per_s)] for m in run.models
    ]
    return _aligned(rows)


def _shares(model: Model, teacher: Model) -> list[str]:
    return [
        percent(model.params / teacher.params),
        count(model.linear_params, teacher.linear_params),
        significant(model.gflops),
    ]


def _recalls(run: Demo, stage: str, results: Sequence[dict[str, float] | None]) -> list[str]:
    reference = results[0]
    rows = [[stage, *_HEADS.values(), "vs teacher"]]
    for model, recall in zip(run.models, results, strict=True):
        if recall is None:
            rows.append([model.name, *["-"] * len(RECALLS), ""])
            continue
        versus = (
            "" if reference is None or model is run.models[0] else difference(recall["mean"] - reference["mean"], "-")
        )
        rows.append([model.name, *[f"{recall[name]:.1f}" for name in RECALLS], versus])
    return _aligned(rows)


def _task(run: Demo, task: Task) -> list[str]:
    """A task's percentages, the first column compared with the teacher's."""
    reference = task.rows[run.models[0].name][0]
    rows = [[task.name, *task.columns, "vs teacher"]]
    for place, (model, values) in enumerate(task.rows.items()):
        shown = ["-" if value is None else f"{value:.1f}" for value in values]
        versus = ""
        if place and values[0] is not None and reference is not None:
            versus = difference(values[0] - reference, "-")
        rows.append([model, *shown, versus])
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns two blanks apart, the first left-aligned, the others right-aligned, with a rule under the heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)])
        for row in rows
    ]
    return [line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]]]
