"""The report page of the vision half: image classifiers before and after compression; numbers in, HTML or text out."""

from typing import Any

from pela_vl.report.charts import share_text, term_chart
from pela_vl.report.figures import count, difference, percent, significant
from pela_vl.report.html import Figure, render_page
from pela_vl.report.tables import Body, Cell, Row, Table, Tile
from pela_vl.report.vision_charts import recovery_chart, similarity_chart, size_chart
from pela_vl.report.vision_run import Classifier, Family, Sample, VisionRun


def vision_table(run: VisionRun) -> str:
    """The results as plain text, for a terminal."""
    blocks = []
    for family in run.families:
        teacher = family.models[0]
        rows = [[f"{family.title}, kappa {family.kappa:g}", *_HEADS]]
        rows += [[model.name, *_cells(model, teacher, "-")] for model in family.models]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        blocks.append("\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]))
    remark = (
        f"Percent of {run.images:,} test images of {run.classes} classes. Similarity: mean cosine between the features of "
        "a class's images, mean over the classes; of all: over all pairs of images."
    )
    return "\n\n".join([*blocks, remark])


_HEADS = ("params", "of teacher", "MFLOPs/image", "images/s", "top-1", "vs teacher", "top-5", "similarity", "of all")


def _cells(model: Classifier, teacher: Classifier, minus: str) -> list[str]:
    return [
        count(model.params, teacher.params),
        percent(model.params / teacher.params),
        significant(model.gflops * 1e3),
        significant(model.images_per_s),
        f"{model.top1:.1f}",
        "" if model is teacher else difference(model.top1 - teacher.top1, minus),
        f"{model.top5:.1f}",
        f"{model.mean_similarity:.3f}",
        f"{model.similarity_all:.3f}",
    ]


def vision_page(run: VisionRun) -> str:
    """The page's text: one HTML file that needs nothing but itself."""
    families = [
        {
            "title": family.title,
            "tiles": _tiles(family),
            "training": _training(family),
            "samples": [_sample(family, sample) for sample in family.samples],
            "confusions": [model for model in family.models if model.confusion],
        }
        for family in run.families
    ]
    return render_page(
        "vision.html",
        run.command,
        run.seconds,
        run.machine,
        run=run,
        families=families,
        kept=percent(run.families[0].models[-1].params / run.families[0].models[0].params, 0),
        tables=[_table(family) for family in run.families],
        sizes=[Figure(family.title, size_chart(family)) for family in run.families],
        similarities=[Figure(family.title, similarity_chart(family)) for family in run.families],
    )


def _tiles(family: Family) -> list[Tile]:
    teacher, tiles = family.models[0], []
    for place, model in enumerate(family.models):
        text, size = "top-1", f"{count(model.params, teacher.params)} parameters"
        if place:
            text += f", {difference(model.top1 - teacher.top1)} points against the teacher"
            size += f", {percent(model.params / teacher.params, 0)} of the teacher"
        tiles.append(Tile(f"m{place}", model.name, f"{model.top1:.1f} %", text, size))
    return tiles


def _table(family: Family) -> Table:
    teacher = family.models[0]
    rows = [
        Row(f"m{place}", model.name, [Cell(value) for value in _cells(model, teacher, "\N{MINUS SIGN}")])
        for place, model in enumerate(family.models)
    ]
    return Table([f"{family.title}, kappa {family.kappa:g}", *_HEADS], [Body("", rows)])


def _training(family: Family) -> list[Figure]:
    figures = []
    if family.accuracies:
        figures.append(Figure("Top-1 on the validation images", recovery_chart(family)))
    totals: dict[int, float] = {}
    for points in family.losses.values():
        for step, value in points:
            totals[step] = totals.get(step, 0.0) + value
    for term, points in family.losses.items():
        values = [value for _, value in points]
        fraction = share_text(values, [totals[step] for step, _ in points])
        figures.append(Figure(term, term_chart(term, [step for step, _ in points], values), fraction))
    return figures


def _sample(family: Family, sample: Sample) -> dict[str, Any]:
    answers = [
        {"model": model.name.split(" ")[0], "found": found.replace("_", " "), "hit": found == sample.label}
        for model, found in zip(family.models, sample.predicted, strict=True)
    ]
    return {"image": sample.image, "label": sample.label.replace("_", " "), "answers": answers}
