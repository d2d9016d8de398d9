"""A chart as hand-written SVG: scales, axes, lines, points, labels. The page's CSS sets colours and fonts.

Coordinates are pixels of the drawing, y downwards. `Scale` maps a value to a coordinate and clips it to the range, so a
chart of one point, or of a constant, has finite coordinates too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LABEL_HEIGHT = 14.0


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, stop] pixels; values outside land on the border. `log` needs low > 0."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"no scale from {self.low} to {self.high}")

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (self.stop - self.start) * (value - low) / (high - low)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the range: 1, 2, 2.5 or 5 x 10^n apart; on a log scale powers of ten, or 1, 2, 5 too."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            factors = (1, 2, 5) if self.high / self.low < 50 else (1,)
            every = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
            return [tick for tick in every if self.low * 0.999 <= tick <= self.high * 1.001]
        step = _round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def span(values: Sequence[float], room: float = 0.06, at_zero: bool = False) -> tuple[float, float]:
    """A range that holds some values with a margin. It is not empty for a constant or for no value.

    Args:
        values: any number of them.
        room: margin on both ends, as a fraction of their range.
        at_zero: start the range at 0.
    """
    low, high = (min(values), max(values)) if len(values) else (0.0, 1.0)
    if at_zero:
        low = 0.0
    width = high - low
    if width <= 1e-9 * max(abs(low), abs(high)):
        width = abs(high) or 1.0
        return (low if at_zero else low - width / 2), high + width / 2
    return (low if at_zero else low - room * width), high + room * width


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick's label with as many decimals as its neighbours need: '0.25', '1500', '20k', '2e-5'."""
    largest = max(abs(tick) for tick in ticks)
    step = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=largest or 1.0)
    if value == 0:
        return "0"
    if largest < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if largest >= 10_000 and step >= 1000:
        return f"{value / 1000:g}k"
    decimals = 0
    while decimals < 6 and abs(round(step, decimals) - step) > 1e-6 * step:
        decimals += 1
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def spread_labels(wanted: Sequence[float], low: float, high: float, gap: float = LABEL_HEIGHT) -> list[float]:
    """Move positions as little as needed to be `gap` apart and within [low, high].

    Args:
        wanted: positions in pixels, in any order.
        low: smallest allowed position.
        high: largest allowed position.
        gap: least distance in pixels; reduced where the labels cannot fit otherwise.

    Returns:
        Positions in the order given.
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    if len(wanted) > 1:
        gap = min(gap, (high - low) / (len(wanted) - 1))
    placed = [0.0] * len(wanted)
    floor = low
    for place in order:
        placed[place] = max(wanted[place], floor)
        floor = placed[place] + gap
    ceiling = high
    for place in reversed(order):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - gap
    return placed


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
        top, right, bottom, left = margins
        self.title, self.size = title, size
        self.x = Scale(*x, left, size[0] - right)
        self.y = Scale(*y, size[1] - bottom, top, log_y)
        self._parts: list[str] = []

    def axes(self, x_label: str, y_label: str, x_ticks: int = 4, y_ticks: int = 4) -> None:
        """Draw horizontal grid lines, ticks and both labels. The y label is above the axis, not rotated.

        Args:
            x_label: below the chart.
            y_label: above the y axis; "" for none.
            x_ticks: about how many.
            y_ticks: about how many.
        """
        xs, ys = self.x.ticks(x_ticks), self.y.ticks(y_ticks)
        left, right, base, top = self.x.start, self.x.stop, self.y.start, self.y.stop
        for tick in ys:
            at = self.y(tick)
            self._add(f'<line class="grid" x1="{_n(left)}" x2="{_n(right)}" y1="{_n(at)}" y2="{_n(at)}"/>')
            self.text(left - 6, at + 3.5, f"{tick:g}" if self.y.log else tick_text(tick, ys), "tick", "end")
        self._add(f'<line class="axis" x1="{_n(left)}" x2="{_n(right)}" y1="{_n(base)}" y2="{_n(base)}"/>')
        for tick in xs:
            at = self.x(tick)
            self._add(f'<line class="axis" x1="{_n(at)}" x2="{_n(at)}" y1="{_n(base)}" y2="{_n(base + 4)}"/>')
            self.text(at, base + 15, tick_text(tick, xs), "tick", "middle")
        self.text((left + right) / 2, base + 30, x_label, "label", "middle")
        if y_label:
            self.text(4, top - 10, y_label, "label", "start")

    def line(self, points: Sequence[tuple[float, float]], css: str) -> None:
        if len(points) == 1:
            self.dot(*points[0], css, 2)
        elif points:
            drawn = " ".join(f"{_n(self.x(x))},{_n(self.y(y))}" for x, y in points)
            self._add(f'<polyline class="line {css}" points="{drawn}"/>')

    def band(self, points: Sequence[tuple[float, float, float]], css: str) -> None:
        """Fill between the second and the third of (x, low, high)."""
        if len(points) > 1:
            edge = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]
            drawn = " ".join(f"{_n(self.x(x))},{_n(self.y(y))}" for x, y in edge)
            self._add(f'<polygon class="band {css}" points="{drawn}"/>')

    def dot(self, x: float, y: float, css: str, radius: float = 5, hint: str = "") -> None:
        """Draw a point.

        Args:
            x: a value on the x axis.
            y: a value on the y axis.
            css: class of the colour.
            radius: pixels.
            hint: tooltip; "" for none.
        """
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self._add(
            f'<circle class="dot {css}" cx="{_n(self.x(x))}" cy="{_n(self.y(y))}" r="{radius:g}">{title}</circle>'
        )

    def kept(self, x: float) -> None:
        """Tint what is left of `x`, with a line at `x`."""
        at, left, top, base = self.x(x), self.x.start, self.y.stop, self.y.start
        box = f'x="{_n(left)}" y="{_n(top)}" width="{_n(at - left)}" height="{_n(base - top)}"'
        self._add(f'<rect class="kept" {box}/>')
        self._add(f'<line class="mark" x1="{_n(at)}" x2="{_n(at)}" y1="{_n(top)}" y2="{_n(base)}"/>')

    def level(self, y: float, css: str) -> None:
        """A dashed line across the chart."""
        at = _n(self.y(y))
        self._add(f'<line class="level {css}" x1="{_n(self.x.start)}" x2="{_n(self.x.stop)}" y1="{at}" y2="{at}"/>')

    def arrow(self, start: tuple[float, float], end: tuple[float, float], gap: float = 9) -> None:
        """Draw an arrow between two points. Points closer to each other than two gaps and a head get none.

        Args:
            start: (x, y) values.
            end: (x, y) values.
            gap: pixels between the arrow and either point.
        """
        x1, y1, x2, y2 = self.x(start[0]), self.y(start[1]), self.x(end[0]), self.y(end[1])
        length = math.hypot(x2 - x1, y2 - y1)
        if length <= 2 * gap + 6:
            return
        ux, uy = (x2 - x1) / length, (y2 - y1) / length
        tip_x, tip_y = x2 - gap * ux, y2 - gap * uy
        back_x, back_y = tip_x - 7 * ux, tip_y - 7 * uy
        head = [(tip_x, tip_y), (back_x - 3.5 * uy, back_y + 3.5 * ux), (back_x + 3.5 * uy, back_y - 3.5 * ux)]
        ends = f'x1="{_n(x1 + gap * ux)}" y1="{_n(y1 + gap * uy)}" x2="{_n(back_x)}" y2="{_n(back_y)}"'
        self._add(f'<line class="arrow" {ends}/>')
        self._add(f'<polygon class="head" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in head)}"/>')

    def text(self, x: float, y: float, text: str, css: str, anchor: str = "start") -> None:
        """Draw text at a position in pixels, not at values.

        Args:
            x: pixels.
            y: pixels, of the baseline.
            text: is escaped.
            css: class.
            anchor: "start", "middle" or "end": which part of the text is at `x`.
        """
        self._add(f'<text class="{css}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> str:
        width, height = self.size
        head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(self.title)}">'
        return head + "".join(self._parts) + "</svg>"

    def _add(self, part: str) -> None:
        self._parts.append(part)


def _n(pixels: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{pixels:.1f}".removesuffix(".0")
