import json

import pytest

from pela_vl.base.errors import UserError
from pela_vl.report import parse_demo


def test_a_run_survives_json(make_demo):
    demo = make_demo()
    assert parse_demo(json.loads(json.dumps(demo))) == parse_demo(demo)


def test_energy_goes_with_the_relative_error(make_demo):
    for layer in parse_demo(make_demo()).layers:
        assert layer.energy_kept == pytest.approx(1 - layer.rel_error**2, abs=1e-12)


@pytest.mark.parametrize(
    ("path", "value", "where", "what"),
    [
        (["models", 1, "zero_shot", "tr5"], "x", "models[1].zero_shot.tr5", "a finite number, found 'x'"),
        (["models", 1, "zero_shot", "tr5"], 101, "models[1].zero_shot.tr5", "from 0 to 100"),
        (["models", 0, "gflops"], float("nan"), "models[0].gflops", "finite"),
        (["models", 0, "params"], 0, "models[0].params", "not below 1"),
        (["models", 0, "params"], True, "models[0].params", "whole number"),
        (["models", 2, "name"], "teacher (dense)", "models[2].name", "stands twice"),
        (["models"], [], "models", "at least one"),
        (["models"], {}, "models", "a list"),
        (["layers", 2, "rank"], 1.5, "layers[2].rank", "whole number"),
        (["layers", 0, "spectrum", 3], -1.0, "layers[0].spectrum[3]", "not below 0"),
        (["curves", "fine-tune PELA", 4, "loss"], float("inf"), "curves.fine-tune PELA[4].loss", "finite"),
        (["curves", "PELA pre-training", 4, "terms"], [1], "curves.PELA pre-training[4].terms", "an object"),
        (["image_queries", 0, "image"], "http://x/y.png", "image_queries[0].image", "data:image/png"),
        (["image_queries", 0, "image"], 'data:image/png;base64,AA" onload="x', "image_queries[0].image", "data:image"),
        (["image_queries", 0, "retrieved", "PELA", 1, "hit"], 1, "image_queries[0].retrieved.PELA[1].hit", "true or"),
        (["text_queries", 0, "retrieved", "other"], [], "text_queries[0].retrieved", "'other' is none of the models"),
        (["machine", "cpu"], None, "machine.cpu", "a string"),
    ],
)
def test_bad_values_are_named(make_demo, path, value, where, what):
    demo = make_demo()
    parent = demo
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    with pytest.raises(UserError) as raised:
        parse_demo(demo)
    message = str(raised.value)
    assert where in message and what in message and "\n" not in message


@pytest.mark.parametrize("path", [["models", 0, "fine_tuned"], ["evaluations"], ["queries_note"]])
def test_what_may_be_absent(make_demo, path):
    demo = make_demo()
    parent = demo
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]
    parse_demo(demo)


@pytest.mark.parametrize("name", ["title", "machine", "models", "layers", "curves", "test", "command"])
def test_what_must_be_there(make_demo, name):
    demo = make_demo()
    del demo[name]
    with pytest.raises(UserError, match=f"{name} is missing"):
        parse_demo(demo)
