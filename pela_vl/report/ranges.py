"""Ranges of a chart's axes, the text of their ticks, and places for labels that do not cover one another."""

from collections.abc import Sequence

LABEL_HEIGHT = 14.0
"""Pixels between labels one above the other."""


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
