"""The report page of the vision half: image classifiers before and after compression; numbers in, HTML or text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pela_vl.report.charts import term_chart
from pela_vl.report.figures import count, difference, duration, percent, significant
from pela_vl.report.plots import Chart, span, spread_labels
from pela_vl.report.style import CSS

_WIDE = (460, 300)
_BINS = 25


@dataclass(frozen=True)
class Classifier:
    """A model of one backbone; the first one is the teacher.

    Args:
        name: Of the model.
        params: Its parameters.
        gflops: Of one image, in Linear and Conv layers.
        images_per_s: Measured.
        top1: Percent of the test images.
        top5: Likewise.
        similarity: By class, the mean cosine between the features of its images (Figure 2).
        confusion: A drawing of the classes recognised worst, as a data URI; empty for none.
    """

    name: str
    params: int
    gflops: float
    images_per_s: float
    top1: float
    top5: float
    similarity: Mapping[str, float]
    confusion: str = ""

    @property
    def mean_similarity(self) -> float:
        return sum(self.similarity.values()) / max(len(self.similarity), 1)


@dataclass(frozen=True)
class Sample:
    """A test image (a data URI) with its class and the class that each model predicts, in the order of the models."""

    image: str
    label: str
    predicted: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """The models of one backbone.

    Args:
        title: Of the backbone.
        kappa: Of the compression.
        models: The teacher first.
        losses: Of PELA's pre-training: term -> [(step, weighted value)].
        accuracies: Of PELA's pre-training: [(step, top-1 on the validation images)].
        samples: Test images with predictions.
    """

    title: str
    kappa: float
    models: Sequence[Classifier]
    losses: Mapping[str, Sequence[tuple[int, float]]]
    accuracies: Sequence[tuple[int, float]]
    samples: Sequence[Sample]


@dataclass(frozen=True)
class VisionRun:
    """A run of the demo: command and machine as shown in the footer, seconds of all stages, the test's images, families."""

    command: str
    machine: Mapping[str, object]
    seconds: float
    images: int
    classes: int
    families: Sequence[Family]


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
        "a class's images, mean over the classes."
    )
    return "\n\n".join([*blocks, remark])


_HEADS = ("params", "of teacher", "MFLOPs/image", "images/s", "top-1", "vs teacher", "top-5", "similarity")


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
    ]


def vision_page(run: VisionRun) -> str:
    """The page's text: one HTML file that needs nothing but itself."""
    lead = (
        "Image classifiers, the teachers, had their large weight matrices cut into pairs of thin low-rank factors. The "
        "same factors can be fitted to a few training images instead, without training. PELA pre-trains the truncated "
        f"model for a short while with the teacher as its guide. All are tested on {run.images:,} images of single "
        f"objects in {run.classes} classes, colour \N{MULTIPLICATION SIGN} shape."
    )
    parts = [f'<h1>PELA on single objects</h1><p class="lead">{lead}</p>']
    parts.append("<h2>The models</h2>" + "".join(_table(family) for family in run.families))
    parts.append(_size_part(run) + _similarity_part(run))
    parts += [_training_part(run), _samples_part(run), _confusion_part(run)]
    cpu, cores = run.machine.get("cpu", "CPU unknown"), run.machine.get("cores", "?")
    versions = ", ".join(f"{key} {value}" for key, value in run.machine.items() if key not in ("cpu", "cores"))
    footer = (
        f"<footer><p>Made by <code>{escape(run.command)}</code> in {duration(run.seconds)}.</p>"
        f"<p>{escape(str(cpu))}, {escape(str(cores))} cores; {escape(versions)}.</p></footer>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>PELA on single objects</title><style>{CSS}{_CSS}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n</main>\n{footer}</body></html>\n"
    )


_CSS = """
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 16px; }
.samples figure { display: grid; grid-template-columns: 72px 1fr; gap: 10px; font-size: 13px; line-height: 1.35; }
.samples img { width: 72px; image-rendering: pixelated; border-radius: 4px; }
.samples .hit { color: var(--hit); } .samples .miss { color: var(--m1); }
.confusion img { width: 100%; border: 1px solid var(--rule); border-radius: 4px; background: white; }
"""


def _table(family: Family) -> str:
    teacher = family.models[0]
    heads = "".join(f'<th scope="col">{head}</th>' for head in (f"{family.title}, kappa {family.kappa:g}", *_HEADS))
    rows = "".join(
        f'<tr class="m{place}"><th scope="row" class="dotted m{place}">{escape(model.name)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in _cells(model, teacher, "\N{MINUS SIGN}"))
        + "</tr>"
        for place, model in enumerate(family.models)
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _size_part(run: VisionRun) -> str:
    figures = [_figure(family.title, size_chart(family)) for family in run.families]
    text = "As the paper's Figure 1: top-1 accuracy against the share of the teacher's parameters that is left."
    return f'<h2>Accuracy against size</h2><p>{text}</p><div class="pair">{"".join(figures)}</div>'


def _similarity_part(run: VisionRun) -> str:
    text = (
        "As the paper's Figure 2: for each class the mean cosine between the features of its test images (a ViT's class "
        "token before the final norm, Swin's pooled feature), as a histogram over the classes. Truncation moves it "
        "to the right where it makes the images of a class look alike."
    )
    figures = [_figure(family.title, similarity_chart(family)) for family in run.families]
    return f'<h2>Similarity inside a class</h2><p>{text}</p><div class="pair">{"".join(figures)}</div>'


def _training_part(run: VisionRun) -> str:
    parts = []
    for family in run.families:
        figures = []
        if family.accuracies:
            figures.append(_figure("Top-1 on the validation images", recovery_chart(family)))
        for term, points in family.losses.items():
            chart = term_chart(term, [step for step, _ in points], [value for _, value in points])
            figures.append(_figure(term, chart))
        if figures:
            parts.append(f'<h3>{escape(family.title)}</h3><div class="grid4">{"".join(figures)}</div>')
    return "<h2>PELA's pre-training</h2>" + "".join(parts) if parts else ""


def _samples_part(run: VisionRun) -> str:
    parts = []
    for family in run.families:
        cards = []
        for sample in family.samples:
            lines = "".join(
                f'<div class="{"hit" if found == sample.label else "miss"}">{escape(model.name.split(" ")[0])}: '
                f"{escape(found.replace('_', ' '))}</div>"
                for model, found in zip(family.models, sample.predicted, strict=True)
            )
            label = escape(sample.label.replace("_", " "))
            cards.append(f'<figure><img src="{sample.image}" alt="{label}"><div><b>{label}</b>{lines}</div></figure>')
        if cards:
            parts.append(f'<h3>{escape(family.title)}</h3><div class="samples">{"".join(cards)}</div>')
    text = "The first test images of different classes, not chosen, with the class that each model predicts."
    return f"<h2>Images with predictions</h2><p>{text}</p>" + "".join(parts) if parts else ""


def _confusion_part(run: VisionRun) -> str:
    parts = []
    for family in run.families:
        figures = [
            _figure(model.name, f'<img src="{model.confusion}" alt="{escape(model.name)}" loading="lazy">')
            for model in family.models
            if model.confusion
        ]
        if figures:
            parts.append(f'<h3>{escape(family.title)}</h3><div class="pair confusion">{"".join(figures)}</div>')
    text = "The classes that each model recognises worst, and what they are taken for most often."
    return f"<h2>Confusion</h2><p>{text}</p>" + "".join(parts) if parts else ""


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
        chart.text(chart.x.stop + 6, chart.y.stop + 30 * place + 6, model.name.split(" (")[0][:22], f"name m{place}")
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


def _figure(title: str, drawing: str) -> str:
    return f"<figure><figcaption><b>{escape(title)}</b></figcaption>{drawing}</figure>"
