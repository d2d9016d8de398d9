"""The report's charts, from results to SVG or HTML."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from pela_vl.report.figures import percent, significant
from pela_vl.report.layers import Kind
from pela_vl.report.plots import Chart
from pela_vl.report.ranges import span, spread_labels
from pela_vl.report.schema import Demo, Model, Point

_BINS = 160
_WIDE = (460, 300)
_LONGEST = 24  # longest name in letters; longer ones are cut
_LETTER = 7.0  # approximate width of a letter in pixels


def recall_chart(models: Sequence[Model], recalls: Sequence[float | None], y: tuple[float, float], title: str) -> str:
    """Mean recall against parameters, with arrows through the models in their order.

    Args:
        models: give name and number of parameters.
        recalls: mean recall of each in percent; models with None are left out.
        y: range of recall shown, so that charts beside one another can have the same.
        title: for screen readers.

    Returns:
        SVG.
    """
    shown = [
        (place, model.name, model.params / 1e6, recall)
        for place, (model, recall) in enumerate(zip(models, recalls, strict=True))
        if recall is not None
    ]
    chart = Chart(title, span([m.params / 1e6 for m in models], 0.12, at_zero=True), y, _WIDE, (30, 16, 38, 44))
    chart.axes("parameters, millions", "mean recall, %", 5, 5)
    for (_, _, *start), (_, _, *end) in zip(shown, shown[1:], strict=False):
        chart.arrow((start[0], start[1]), (end[0], end[1]))
    middle = (chart.x.start + chart.x.stop) / 2
    for on_right in (True, False):
        labels = [one for one in shown if (chart.x(one[2]) > middle) == on_right]
        shift = -27 if on_right else -2  # above a point at the right border, beside one at the left
        heights = spread_labels([chart.y(one[3]) + shift for one in labels], chart.y.stop, chart.y.start - 18, 31)
        for (place, name, params, recall), height in zip(labels, heights, strict=True):
            chart.dot(params, recall, f"m{place}", 6, f"{name}: {params:.3g} M, {recall:.1f} %")
            at = chart.x(params)
            fits = _LETTER * len(name) < at - 13 - chart.x.start  # on the left, off the arrows, where it fits
            x, anchor = (at + 6, "end") if on_right else (at - 13, "end") if fits else (at + 13, "start")
            chart.text(x, height, name, f"name m{place}", anchor)
            chart.text(x, height + 14, f"{recall:.1f} %", "note", anchor)
    return chart.svg()


def spectrum_chart(kind: Kind, floor: float) -> str:
    """Singular values relative to the largest, on a log scale from `floor` to 1, one line per layer, the kept ranks
    tinted.

    Values below `floor` are not drawn.
    """
    longest = max((len(layer.spectrum) for layer in kind.layers), default=1)
    chart = Chart(f"{kind.tower}, {kind.title}: spectra", (0, max(longest, 1)), (floor, 1), log_y=True)
    ranks = sorted({layer.rank for layer in kind.layers})
    for rank in ranks:
        chart.kept(rank)
    chart.axes("singular value, from the largest", "")
    for depth, layer in enumerate(kind.layers):
        top = max(layer.spectrum, default=0.0)
        if top <= 0:
            continue
        step = max(1, len(layer.spectrum) // _BINS)
        points = [(place + 1, layer.spectrum[place] / top) for place in range(0, len(layer.spectrum), step)]
        points = [point for point in points if point[1] >= floor]
        shade = round(3 * depth / max(1, len(kind.layers) - 1))
        chart.line(points, f"spectrum shade{shade}")
    at = chart.x(ranks[-1])
    chart.text(at + 5, chart.y.start - 7, f"rank {', '.join(map(str, ranks))}", "note")
    return chart.svg()


def term_chart(name: str, steps: Sequence[int], values: Sequence[float], css: str = "m2") -> str:
    """One loss term over the steps: the range of single steps as a band, their running mean as a line.

    Args:
        name: of the term.
        steps: numbers of the steps.
        values: of the term at these steps.
        css: class of the colour.

    Returns:
        SVG.
    """
    binned = _binned(steps, values)
    chart = Chart(f"{name} over steps", span(steps, 0), span([v for b in binned for v in b[1:3]]))
    chart.axes("step", "")
    chart.band([(x, low, high) for x, low, high, _ in binned], css)
    chart.line(_smoothed(binned), css)
    return chart.svg()


def share_text(values: Sequence[float], totals: Sequence[float]) -> str:
    """What a term is of the total at the end, both averaged over the last tenth of the steps; "" where that is no share.

    Args:
        values: the term, weighted as it enters the total.
        totals: the total at the same steps.
    """
    last = max(len(values) // 10, 1)
    value, total = (sum(found[-last:]) / last for found in (values, totals))
    if total <= 0 or value < 0:
        return ""
    return f"{significant(value, 2)} of {significant(total, 2)} at the end, {percent(value / total)}"


def losses_chart(curves: Mapping[str, tuple[str, Sequence[Point]]], title: str) -> str:
    """Smoothed losses of several runs in one chart: label -> (CSS class, points). Labels are at the lines' ends."""
    lines = {
        label: (css, _smoothed(_binned([p.step for p in points], [p.loss for p in points])))
        for label, (css, points) in curves.items()
        if points
    }
    steps = [point.step for _, points in curves.values() for point in points]
    y = span([value for _, line in lines.values() for _, value in line])
    chart = Chart(title, span(steps, 0), y, _WIDE, (30, _label_room(lines), 38, 44))
    chart.axes("step", "loss", 5, 5)
    for css, line in lines.values():
        chart.line(line, css)
    _end_labels(chart, [(label, css, line[-1][1]) for label, (css, line) in lines.items()])
    return chart.svg()


def evaluations_chart(run: Demo) -> str:
    """Mean recall during training, one line per name; a name with one point is a horizontal line. Models keep their
    colours.
    """
    models = [model.name for model in run.models]
    series: dict[str, list[tuple[float, float]]] = {}
    for evaluation in sorted(run.evaluations, key=lambda one: one.step):
        series.setdefault(evaluation.name, []).append((evaluation.step, evaluation.mean))
    labels = [
        (name, f"m{models.index(name) if name in models else len(models) - 1}", points[-1][1])
        for name, points in series.items()
    ]
    x = span([evaluation.step for evaluation in run.evaluations], 0)
    y = span([evaluation.mean for evaluation in run.evaluations])
    chart = Chart("Recall during pre-training", x, y, _WIDE, (30, _label_room(series), 38, 44))
    chart.axes("step", "mean recall, %", 5, 5)
    for (_, css, last), points in zip(labels, series.values(), strict=True):
        if len(points) == 1:
            chart.level(last, css)
            continue
        chart.line(points, css)
        for step, mean in points:
            chart.dot(step, mean, css, 3.5, f"step {step}: {mean:.1f} %")
    _end_labels(chart, labels)
    return chart.svg()


def _label_room(labels: Iterable[str]) -> int:
    """Right margin, in pixels, for names of lines."""
    return round(_LETTER * min(_LONGEST, max(map(len, labels), default=0))) + 12


def _end_labels(chart: Chart, labels: Sequence[tuple[str, str, float]]) -> None:
    """Name lines at the right border: (label, CSS class, value at the end)."""
    heights = spread_labels([chart.y(value) + 4 for *_, value in labels], chart.y.stop + 4, chart.y.start)
    for (label, css, _), height in zip(labels, heights, strict=True):
        short = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
        chart.text(chart.x.stop + 6, height, short, f"name {css}")


def error_strip(kinds: Sequence[Kind]) -> str:
    """Relative error of every layer: one row per kind, one dot per layer. HTML, so that its text does not shrink with
    the page.
    """
    errors = [layer.rel_error for kind in kinds for layer in kind.layers]
    high = max(1.0, max(errors, default=1.0))
    rows, tower = [], None
    for kind in kinds:
        if kind.tower != tower:
            tower = kind.tower
            rows.append(f'<h4 class="tower">{escape(tower)}</h4>')
        dots = "".join(
            f'<i style="left:{100 * layer.rel_error / high:.2f}%" title="{escape(layer.name)}: '
            f'{layer.rel_error:.3f}"></i>'
            for layer in kind.layers
        )
        low, top = min(x.rel_error for x in kind.layers), max(x.rel_error for x in kind.layers)
        values = f"{low:.2f}" if f"{low:.2f}" == f"{top:.2f}" else f"{low:.2f}\N{EN DASH}{top:.2f}"
        rows.append(
            f'<div class="strip"><span>{escape(kind.title)}</span><span class="track">{dots}</span>'
            f'<span class="num">{values}</span></div>'
        )
    ticks = "".join(f'<b style="left:{100 * t / 4:g}%">{significant(high * t / 4, 2)}</b>' for t in range(5))
    rows.append(f'<div class="strip ticks"><span></span><span class="track">{ticks}</span><span></span></div>')
    return f'<div class="strips">{"".join(rows)}</div>'


def energy_text(kind: Kind) -> str:
    """Fraction of energy that the kept ranks hold, lowest to highest of the layers: 'keeps 71.0-80.2 % of the energy'."""
    fractions = [layer.energy_kept for layer in kind.layers]
    low, high = percent(min(fractions), 0), percent(max(fractions), 0)
    both = high if low == high else f"{low.removesuffix(' %')}\N{EN DASH}{high}"
    return f"keeps {both} of the energy"


def _binned(steps: Sequence[int], values: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """At most `_BINS` runs of neighbours as (step, lowest, highest, mean)."""
    size = max(1, -(-len(steps) // _BINS))
    bins = []
    for start in range(0, len(steps), size):
        part = values[start : start + size]
        middle = steps[start : start + size]
        bins.append((sum(middle) / len(middle), min(part), max(part), sum(part) / len(part)))
    return bins


def _smoothed(binned: Sequence[tuple[float, float, float, float]]) -> list[tuple[float, float]]:
    """Centred running mean over about a twelfth of the curve, shorter near both ends."""
    reach = len(binned) // 24
    line = []
    for place, (step, *_) in enumerate(binned):
        part = [one[3] for one in binned[max(0, place - reach) : place + reach + 1]]
        line.append((step, sum(part) / len(part)))
    return line
