import math
import random
import re
from xml.etree import ElementTree

import pytest

from pela_vl.report.layers import layer_kinds
from pela_vl.report.plots import Chart
from pela_vl.report.ranges import span, spread_labels, tick_text
from pela_vl.report.schema import Layer


def ticks_of(x, y=(0, 1), log_y=False, about=5):
    """Tick labels and pixels that a chart with these ranges draws, across and up."""
    chart = Chart("", x, y, (400, 300), (20, 20, 40, 40), log_y)
    chart.axes("", "", about, about)
    found = [(text.text, float(text.get("x")), float(text.get("y"))) for text in texts(chart, "tick")]
    return [one for one in found if one[2] > 270], [one for one in found if one[2] <= 270]


def texts(chart, css):
    return ElementTree.fromstring(chart.svg()).findall(f".//g[@class='{css}']/text")


def paths(chart, css):
    """Coordinates of a mark's path."""
    drawn = ElementTree.fromstring(chart.svg()).findall(f".//g[@class='{css}']/path")
    return [[float(number) for number in re.findall(r"-?[\d.]+", path.get("d"))] for path in drawn]


def test_an_axis_maps_its_ends_and_clamps():
    chart = Chart("", (2, 4), (0.01, 1), (400, 100), (10, 100, 10, 100), log_y=True)
    assert [chart.x(value) for value in (1, 2, 3, 4, 9)] == pytest.approx([100, 100, 200, 300, 300])
    assert [chart.y(value) for value in (0, 0.01, 0.1, 1, 7)] == pytest.approx([90, 90, 50, 10, 10])


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (math.nan, 1)])
@pytest.mark.parametrize("place", [0, 1])
def test_an_empty_range_is_refused(ends, place):
    with pytest.raises(ValueError, match="no scale"):
        Chart("", *[(0, 1), (0, 1)][:place], ends, *[(0, 1)][place:])


def test_a_log_scale_wants_positive_values():
    with pytest.raises(ValueError, match="no scale"):
        Chart("", (0, 1), (0, 1), log_y=True)


def test_ticks_are_round_inside_and_about_as_many_as_asked():
    draw = random.Random(0)
    for _ in range(8):
        low = draw.choice((0.0, draw.uniform(-1, 1) * 10 ** draw.uniform(-3, 3)))
        high = low + 10 ** draw.uniform(-2, 3) * max(1e-2, abs(low))
        chart = Chart("", (low, high), (0, 1), (400, 300))
        chart.axes("", "", 5, 5)
        marks = ElementTree.fromstring(chart.svg()).findall(".//g[@class='axis']/g/path")
        places = [float(mark.get("transform").split("(")[1].split()[0]) for mark in marks]
        assert 2 <= len(places) <= 6, (low, high, places)
        assert all(chart.x.start - 0.1 <= place <= chart.x.stop + 0.1 for place in places)
        step = (places[1] - places[0]) / (chart.x.stop - chart.x.start) * (high - low)
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-2)
        assert min(abs(mantissa / one - 1) for one in (1, 2, 2.5, 5)) < 0.02
        assert all(
            b - a == pytest.approx(places[1] - places[0], abs=0.21) for a, b in zip(places, places[1:], strict=False)
        )


def test_ticks_stand_at_their_values_with_round_labels():
    across, up = ticks_of((0, 10), (0, 4))
    assert [text for text, _, _ in across] == ["0", "2", "4", "6", "8", "10"]
    assert [x for _, x, _ in across] == pytest.approx([40, 108, 176, 244, 312, 380], abs=0.1)
    assert [text for text, _, _ in up] == ["0", "1", "2", "3", "4"]


def test_log_ticks():
    assert [text for text, _, _ in ticks_of((0, 1), (1e-3, 1), log_y=True)[1]] == ["0.001", "0.01", "0.1", "1"]
    assert [text for text, _, _ in ticks_of((0, 1), (0.05, 1), log_y=True)[1]] == ["0.05", "0.1", "0.2", "0.5", "1"]


def test_marks_lie_where_their_values_are_and_carry_the_pages_classes_alone():
    chart = Chart("a <title>", (0, 10), (0, 10), (100, 100), (0, 0, 0, 0))
    chart.line([(0, 0), (5, 10), (99, 5)], "m1")
    chart.band([(0, 1, 2), (10, 3, 4)], "m2")
    chart.level(5, "m0")
    chart.dot(2.5, 5, "m3", 6, "2 & 3")
    chart.text(10, 20, "costs $5 & <more>", "note", "end")
    assert paths(chart, "line m1") == [[0, 100, 50, 0, 100, 50]]
    assert sorted(set(paths(chart, "band m2")[0])) == [0, 60, 70, 80, 90, 100]
    assert paths(chart, "level m0") == [[0, 50, 100, 50]]
    svg = chart.svg()
    assert (
        "<title>2 &amp; 3</title>" in svg
        and 'transform="translate(25 50)"' in svg
        and 'aria-label="a &lt;title&gt;"' in svg
    )
    (note,) = texts(chart, "note")
    assert note.text == "costs $5 & <more>" and note.attrib == {"x": "10", "y": "20", "text-anchor": "end"}
    assert "style" not in svg and "clip" not in svg and "font" not in svg and "xmlns" not in svg and "id=" not in svg


def test_one_point_is_a_dot_and_none_is_nothing():
    chart = Chart("", (0, 1), (0, 1))
    before = chart.svg()
    chart.line([], "m0")
    chart.band([(0.5, 0, 1)], "m0")
    assert chart.svg() == before
    chart.line([(0.5, 0.5)], "m0")
    assert 'class="dot m0"' in chart.svg() and "line m0" not in chart.svg()


def test_equal_charts_are_equal_text():
    def drawn():
        chart = Chart("", (0, 1), (0, 1))
        chart.axes("x", "y")
        chart.dot(0.2, 0.3, "m1")
        return chart.svg()

    assert drawn() == drawn()


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
    assert paths(chart, "arrow") == []
    chart.arrow((0, 0.5), (1, 0.5))
    line, head = paths(chart, "arrow")
    assert min(line[::2]) == pytest.approx(9, abs=0.2) and max(line[::2]) == pytest.approx(91, abs=1.2)
    assert max(head[::2]) == pytest.approx(91, abs=1.2) and set(line[1::2]) == {50}


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
