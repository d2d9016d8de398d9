"""The charts of the vision half's page, as SVG."""

import re

from pela_vl.report.plots import Chart
from pela_vl.report.ranges import span, spread_labels
from pela_vl.report.vision_run import Family

_WIDE = (460, 300)
_BINS = 25


def size_chart(family: Family) -> str:
    """Top-1 (percent) against the share of the teacher's parameters (percent)."""
    teacher = family.models[0]
    low, high = span([model.top1 for model in family.models], 0.15)
    chart = Chart(
        f"{family.title}: accuracy and size", (0, 112), (max(low, 0), min(high, 102)), _WIDE, (30, 16, 38, 44)
    )
    chart.axes("parameters, % of the teacher's", "top-1, %", 5, 5)
    points = [(100 * model.params / teacher.params, model.top1) for model in family.models]
    heights = spread_labels([chart.y(y) + 4 for _, y in points], chart.y.stop, chart.y.start - 4, 15)
    for place, ((x, y), height, model) in enumerate(zip(points, heights, family.models, strict=True)):
        chart.dot(x, y, f"m{place}", 6, f"{model.name}: {x:.1f} % of the parameters, {y:.1f} %")
        right = x > 60
        label = f"{model.name}  {y:.1f} %"
        chart.text(chart.x(x) + (-11 if right else 11), height, label, f"name m{place}", "end" if right else "start")
    return chart.svg()


def similarity_chart(family: Family) -> str:
    """A step line a model: how many classes have which mean cosine."""
    values = [value for model in family.models for value in model.similarity.values()]
    low, high = span(values, 0.02)
    width = (high - low) / _BINS
    lines = []
    for model in family.models:
        counts = [0] * _BINS
        for value in model.similarity.values():
            counts[min(int((value - low) / width), _BINS - 1)] += 1
        lines.append(counts)
    top = max((max(line) for line in lines), default=1) or 1
    chart = Chart(f"{family.title}: similarity", (low, high), (0, top * 1.1), _WIDE, (30, 150, 38, 44))
    chart.axes("mean cosine inside a class", "classes", 5, 5)
    for place, (model, counts) in enumerate(zip(family.models, lines, strict=True)):
        edges = [(low + width * (i + end), n) for i, n in enumerate(counts) for end in (0, 1)]
        chart.line(edges, f"m{place}")
        name = re.split(r" \(|, ", model.name)[0]  # the rest would not fit
        chart.text(chart.x.stop + 6, chart.y.stop + 30 * place + 6, name, f"name m{place}")
        chart.text(chart.x.stop + 6, chart.y.stop + 30 * place + 20, f"mean {model.mean_similarity:.3f}", "note")
    return chart.svg()


def recovery_chart(family: Family) -> str:
    """Top-1 over PELA's steps; the teacher's on the test as a dashed level."""
    steps, values = [step for step, _ in family.accuracies], [value for _, value in family.accuracies]
    teacher = family.models[0].top1
    chart = Chart("Top-1 over steps", span([0, *steps], 0), span([*values, teacher]))
    chart.axes("step", "")
    chart.level(teacher, "m0")
    chart.line(list(zip(steps, values, strict=True)), f"m{len(family.models) - 1}")
    return chart.svg()
