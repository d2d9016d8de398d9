"""A chart of a report page: matplotlib draws it, the page's CSS sets its colours and fonts.

matplotlib lays out scales, ticks and marks and writes SVG. Each mark has a class of the page instead of matplotlib's colours,
so that a chart follows the light and the dark scheme. Sizes are pixels of the drawing; positions of text are counted from its
upper left corner.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from pela_vl.base.drawing import new_figure
from pela_vl.report.ranges import tick_text

if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.axis import Axis

_INCH = 72.0
"""Pixels of a drawing in one of matplotlib's inches: its points, so that a point is a pixel."""
_TEXT = 11.0
"""Pixels of a letter, as in the page's CSS."""


@dataclass(frozen=True)
class Pixels:
    """Maps a value of an axis to a pixel; values outside of the axis land on its end.

    Args:
        low: Smallest value.
        high: Largest value.
        start: The smallest value's pixel.
        stop: The largest value's pixel.
        place: Of a value inside.
    """

    low: float
    high: float
    start: float
    stop: float
    place: Callable[[float], float]

    def clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def __call__(self, value: float) -> float:
        return self.place(self.clip(value))


class Chart:
    """One drawing: axes first, then marks in the order they are added.

    Args:
        title: for screen readers.
        x: range of values.
        y: range of values.
        size: (width, height) in pixels.
        margins: (top, right, bottom, left) in pixels.
        log_y: log scale.

    Raises:
        ValueError: If a range is empty, or not positive on a log scale.
        UserError: Without matplotlib.
    """

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        size: tuple[int, int] = (264, 176),
        margins: tuple[int, int, int, int] = (10, 10, 34, 40),
        log_y: bool = False,
    ) -> None:
        for low, high in (x, y):
            if not low < high or (log_y and (low, high) == y and low <= 0):
                raise ValueError(f"no scale from {low} to {high}")
        (top, right, bottom, left), (width, height) = margins, size
        self.title, self.size, self.log_y = title, size, log_y
        self._figure = new_figure(width / _INCH, height / _INCH)
        self._figure.set_layout_engine("none")
        self._figure.dpi = _INCH
        self._figure.patch.set_visible(False)
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        self._axes = self._figure.add_axes(box, xlim=x, ylim=y, yscale="log" if log_y else "linear")
        self._axes.set_axis_off()
        to_pixels = self._axes.transData.transform
        self.x = Pixels(*x, left, width - right, lambda value: float(to_pixels((value, y[0]))[0]))
        self.y = Pixels(*y, height - bottom, top, lambda value: height - float(to_pixels((x[0], value))[1]))
        self._classes: dict[str, tuple[str, str]] = {}

    def axes(self, x_label: str, y_label: str, x_ticks: int = 4, y_ticks: int = 4) -> None:
        """Draw horizontal grid lines, ticks and both labels. The y label is above the axis, not rotated.

        Args:
            x_label: below the chart.
            y_label: above the y axis; "" for none.
            x_ticks: about how many.
            y_ticks: about how many.
        """
        from matplotlib.ticker import LogLocator, MaxNLocator

        axes = self._axes
        axes.set_axis_on()
        axes.patch.set_visible(False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_gid(self._class("axis"))
        axes.set_axisbelow(True)
        axes.minorticks_off()
        axes.tick_params("x", length=4, pad=3)
        axes.tick_params("y", length=0, pad=6)
        steps = [1, 2, 2.5, 5, 10]
        axes.xaxis.set_major_locator(MaxNLocator(x_ticks, steps=steps))
        if self.log_y:
            axes.yaxis.set_major_locator(
                LogLocator(subs=(1, 2, 5) if self.y.high / self.y.low < 50 else (1,), numticks=9)
            )
        else:
            axes.yaxis.set_major_locator(MaxNLocator(y_ticks, steps=steps))
        axes.grid(axis="y")
        _label_ticks(axes.xaxis, self.x, tick_text)
        _label_ticks(axes.yaxis, self.y, (lambda tick, _: f"{tick:g}") if self.log_y else tick_text)
        for axis in (axes.xaxis, axes.yaxis):
            for tick in axis.get_major_ticks():
                tick.gridline.set(gid=self._class("grid"), clip_on=False)
                tick.tick1line.set_gid(self._class("axis"))
                tick.label1.set(gid=self._class("tick"), fontsize=_TEXT)
        base = self.y.start
        self.text((self.x.start + self.x.stop) / 2, base + 30, x_label, "label", "middle")
        if y_label:
            self.text(4, self.y.stop - 10, y_label, "label", "start")

    def line(self, points: Sequence[tuple[float, float]], css: str) -> None:
        if len(points) == 1:
            self.dot(*points[0], css, 2)
        elif points:
            xs, ys = [self.x.clip(x) for x, _ in points], [self.y.clip(y) for _, y in points]
            self._axes.plot(xs, ys, gid=self._class(f"line {css}"), clip_on=False)

    def band(self, points: Sequence[tuple[float, float, float]], css: str) -> None:
        """Fill between the second and the third of (x, low, high)."""
        if len(points) > 1:
            xs, lows, highs = (
                [scale.clip(v) for v in values]
                for scale, values in zip((self.x, self.y, self.y), zip(*points, strict=True), strict=True)
            )
            self._axes.fill_between(xs, lows, highs, gid=self._class(f"band {css}"), clip_on=False)

    def dot(self, x: float, y: float, css: str, radius: float = 5, hint: str = "") -> None:
        """Draw a point.

        Args:
            x: a value on the x axis.
            y: a value on the y axis.
            css: class of the colour.
            radius: pixels.
            hint: tooltip; "" for none.
        """
        where = [self.x.clip(x)], [self.y.clip(y)]
        self._axes.plot(*where, "o", markersize=2 * radius, gid=self._class(f"dot {css}", hint), clip_on=False)

    def kept(self, x: float) -> None:
        """Tint what is left of `x`, with a line at `x`."""
        x = self.x.clip(x)
        self._axes.axvspan(self.x.low, x, gid=self._class("kept"), clip_on=False)
        self._axes.axvline(x, gid=self._class("mark"), clip_on=False)

    def level(self, y: float, css: str) -> None:
        """A dashed line across the chart."""
        self._axes.axhline(self.y.clip(y), gid=self._class(f"level {css}"), clip_on=False)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], gap: float = 9) -> None:
        """Draw an arrow between two points. Points closer to each other than two gaps and a head get none.

        Args:
            start: (x, y) values.
            end: (x, y) values.
            gap: pixels between the arrow and either point.
        """
        places = [(self.x.clip(x), self.y.clip(y)) for x, y in (start, end)]
        (x1, y1), (x2, y2) = ((self.x(x), self.y(y)) for x, y in places)
        if math.hypot(x2 - x1, y2 - y1) <= 2 * gap + 6:
            return
        style = {"arrowstyle": "-|>,head_length=7,head_width=3.5", "shrinkA": gap, "shrinkB": gap, "mutation_scale": 1}
        drawn = self._axes.annotate("", places[1], places[0], arrowprops=style, annotation_clip=False)
        assert drawn.arrow_patch is not None
        drawn.arrow_patch.set(gid=self._class("arrow"), clip_on=False)

    def text(self, x: float, y: float, text: str, css: str, anchor: str = "start") -> None:
        """Draw text at a position in pixels, not at values.

        Args:
            x: pixels.
            y: pixels, of the baseline.
            text: is escaped.
            css: class.
            anchor: "start", "middle" or "end": which part of the text is at `x`.
        """
        width, height = self.size
        aligned = {"start": "left", "middle": "center", "end": "right"}[anchor]
        self._figure.text(
            x / width,
            1 - y / height,
            text.replace("$", r"\$"),
            ha=aligned,
            va="baseline",
            fontsize=_TEXT,
            gid=self._class(css),
        )

    def svg(self) -> str:
        """The drawing as an element of a page."""
        from matplotlib import rc_context

        stream = io.BytesIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pela_vl"}):  # text as text; equal charts, equal names
            self._figure.savefig(stream, format="svg", dpi=_INCH, transparent=True)
        root = ElementTree.fromstring(stream.getvalue())
        shapes: dict[str, str] = {}
        for part in list(root.iter()):
            self._for_the_page(part, shapes)
        for part in list(root.iter()):
            for child in part.findall("defs"):
                part.remove(child)
        width, height = self.size
        root.attrib.clear()
        root.attrib.update(
            {"class": "chart", "viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": self.title}
        )
        return ElementTree.tostring(root, encoding="unicode")

    def _class(self, css: str, hint: str = "") -> str:
        """A name for a mark, by which its class and tooltip are found in what matplotlib wrote."""
        name = f"mark{len(self._classes)}"
        self._classes[name] = css, hint
        return name

    def _for_the_page(self, part: Any, shapes: dict[str, str]) -> None:
        """Without matplotlib's colours, fonts, clips and names; with the page's class and the tooltip.

        `shapes` holds the drawing's shapes by name. Each is drawn where it is used, since names of two charts may be equal.
        """
        part.tag = part.tag.rpartition("}")[2]
        for child in [child for child in part if child.tag.rpartition("}")[2] in ("metadata", "style")]:
            part.remove(child)
        name = part.attrib.pop("id", None) if part.tag == "g" else None
        anchor = re.search(r"text-anchor: *(\w+)", part.attrib.pop("style", ""))
        if anchor:
            part.set("text-anchor", anchor.group(1))
        if part.get("transform", "").startswith("rotate(-0"):
            del part.attrib["transform"]
        for key in part.attrib.keys() & {"d", "x", "y"}:  # to a tenth of a pixel
            part.set(
                key, re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), part.attrib[key])
            )
        if part.tag == "path" and "id" in part.attrib:
            shapes[part.attrib.pop("id")] = part.attrib["d"]
        if part.tag == "use":
            used = next(value for key, value in part.attrib.items() if key.endswith("href"))
            place = f"translate({part.attrib['x']} {part.attrib['y']})"
            part.tag, part.attrib = "path", {"d": shapes[used.removeprefix("#")], "transform": place}
        part.text, part.tail = (part.text or "").strip() or None, None
        if name in self._classes:
            css, hint = self._classes[name]
            part.set("class", css)
            if hint:
                title = ElementTree.Element("title")
                title.text = hint
                part.insert(0, title)


def _label_ticks(axis: "Axis", pixels: Pixels, text: Callable[[float, Sequence[float]], str]) -> None:
    """Fix an axis's ticks where its locator puts them, each with its label."""
    slack = 1e-9 * (pixels.high - pixels.low)
    ticks = [float(tick) for tick in axis.get_majorticklocs() if pixels.low - slack <= tick <= pixels.high + slack]
    axis.set_ticks(ticks, [text(tick, ticks) for tick in ticks] if ticks else [])
