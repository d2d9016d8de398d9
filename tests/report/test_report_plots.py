import math
import random

import pytest

from pela_vl.report.layers import layer_kinds
from pela_vl.report.plots import Chart, Scale, span, spread_labels, tick_text
from pela_vl.report.schema import Layer


def test_scale_maps_its_ends_and_clamps():
    scale = Scale(2, 4, 100, 300)
    assert [scale(value) for value in (1, 2, 3, 4, 9)] == [100, 100, 200, 300, 300]
    log = Scale(0.01, 1, 90, 10, log=True)
    assert [round(log(value)) for value in (0, 0.01, 0.1, 1)] == [90, 90, 50, 10]


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (math.nan, 1)])
def test_scale_refuses_an_empty_range(ends):
    with pytest.raises(ValueError, match="no scale"):
        Scale(*ends, 0, 1)


def test_ticks_are_round_inside_and_about_as_many_as_asked():
    draw = random.Random(0)
    for _ in range(500):
        low = draw.choice((0.0, draw.uniform(-1, 1) * 10 ** draw.uniform(-6, 6)))
        high = low + 10 ** draw.uniform(-5, 5) * max(1e-3, abs(low))
        ticks = Scale(low, high, 0, 1).ticks(5)
        assert 2 <= len(ticks) <= 6, (low, high, ticks)
        slack = 1e-6 * (high - low)
        assert all(low - slack <= tick <= high + slack for tick in ticks)
        steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
        assert all(step == pytest.approx(steps[0]) for step in steps)
        mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(mantissa - one) for one in (1, 2, 2.5, 5)) < 1e-3


def test_log_ticks():
    assert Scale(1e-3, 1, 0, 1, log=True).ticks() == pytest.approx([1e-3, 1e-2, 1e-1, 1])
    assert Scale(0.05, 1, 0, 1, log=True).ticks() == pytest.approx([0.05, 0.1, 0.2, 0.5, 1])


@pytest.mark.parametrize(
    ("ticks", "wanted"),
    [
        ([0, 0.25, 0.5], ["0", "0.25", "0.50"]),
        ([0, 20_000], ["0", "20k"]),
        ([1e-4, 2e-4], ["1e-4", "2e-4"]),
        ([-1, 0, 1], ["\N{MINUS SIGN}1", "0", "1"]),
        ([500, 1000], ["500", "1000"]),
    ],
)
def test_tick_labels(ticks, wanted):
    assert [tick_text(tick, ticks) for tick in ticks] == wanted


@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [-3.0], [1e-12, 1e-12], [1.0, 2.0]])
@pytest.mark.parametrize("at_zero", [False, True])
def test_span_holds_its_values_and_is_never_empty(values, at_zero):
    low, high = span(values, at_zero=at_zero and min(values, default=0) >= 0)
    assert low < high and all(low <= value <= high for value in values)


def test_labels_are_spread_within_bounds_in_their_order():
    draw = random.Random(0)
    for _ in range(300):
        wanted = [draw.uniform(-20, 120) for _ in range(draw.randint(1, 6))]
        placed = spread_labels(wanted, 0, 100, 14)
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        ranked = [placed[place] for place in order]
        assert all(-1e-9 <= at <= 100 + 1e-9 for at in placed)
        assert all(b - a >= 14 - 1e-9 for a, b in zip(ranked, ranked[1:], strict=False))
    assert spread_labels([10.0, 90.0], 0, 100, 14) == [10, 90]
    crowded = spread_labels([50.0] * 21, 0, 100, 14)
    assert sorted(crowded) == pytest.approx([5 * place for place in range(21)])


def test_arrow_ends_before_its_points_and_vanishes_between_close_ones():
    chart = Chart("", (0, 1), (0, 1), (100, 100), (0, 0, 0, 0))
    chart.arrow((0, 0), (0.1, 0.1))
    assert "polygon" not in chart.svg()
    chart.arrow((0, 0.5), (1, 0.5))
    assert '<polygon class="head" points="91,50' in chart.svg()


def test_layers_of_one_kind_share_a_chart():
    names = [f"text_encoder.encoder.layer.{k}.{place}" for k in (0, 1) for place in ("attention.self.query", "x.y")]
    names += ["visual_encoder.blocks.0.mlp.fc1", "head", "text_encoder.encoder.layer.11.crossattention.self.key"]
    kinds = layer_kinds([Layer(name, 4, 4, 1, 0.5, [1.0]) for name in names])
    assert [(kind.tower, kind.title, len(kind.layers)) for kind in kinds] == [
        ("Text encoder", "self-attention query", 2),
        ("Text encoder", "x.y", 2),
        ("Image encoder", "MLP in", 1),
        ("head", "head", 1),
        ("Text encoder, cross-attention", "key", 1),
    ]
