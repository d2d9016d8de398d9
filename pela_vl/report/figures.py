"""Numbers as short text with a unit."""

import math


def count(value: float, like: float | None = None) -> str:
    """1234567 -> '1.23 M'. `like` is a number whose unit to use, so that a column has one: (986112, 2e6) -> '0.986 M'."""
    reference = value if like is None else like
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if reference >= 0.9995 * size:
            return significant(value / size) + unit
    return f"{value:.0f}"


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits, without an exponent: 0.1234 -> '0.123', 812.4 -> '812'."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")  # 0.9996 is rounded to 1.00 before its digits are counted
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:.{min(max(decimals, 0), 12)}f}"


def difference(value: float, minus: str = "\N{MINUS SIGN}") -> str:
    """A signed difference to one decimal; what rounds to nothing has no sign: '+1.2', '−0.4', '0.0'."""
    text = f"{abs(value):.1f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else minus) + text


def percent(fraction: float, digits: int = 1) -> str:
    """0.414 -> '41.4 %'."""
    return f"{100 * fraction:.{digits}f} %"


def duration(seconds: float) -> str:
    """754 -> '12 min 34 s'; 7260 -> '2 h 1 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
