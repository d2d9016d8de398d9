import pytest

from pela_vl.base.errors import UserError
from pela_vl.report import format_table
from pela_vl.report.figures import count, difference, duration, percent, significant


def test_every_number_stands_in_its_column(make_demo):
    demo = make_demo()
    cost, zero_shot, fine_tuned, note = format_table(demo).split("\n\n")
    for block, stage in ((zero_shot, "zero_shot"), (fine_tuned, "fine_tuned")):
        head, rule, *rows = block.splitlines()
        assert set(rule) == {"-"} and len(rows) == 3
        teacher = demo["models"][0][stage]["mean"]
        for place, (row, model) in enumerate(zip(rows, demo["models"], strict=True)):
            cells = row.removeprefix(model["name"]).split()
            assert cells[:7] == [f"{value:.1f}" for value in model[stage].values()]
            assert cells[7:] == ([f"{model[stage]['mean'] - teacher:+.1f}"] if place else [])
            assert row.rstrip() == row and len(row) <= len(head) <= 100
    assert cost.splitlines()[3].split()[3:] == ["0.986", "M", "48.5", "%", "0.524", "M", "0.118", "1102"]
    assert "500 images" in note and "2500 texts" in note


def test_plain_ascii_for_any_terminal(make_demo):
    assert format_table(make_demo()).isascii()


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (count(209_560_835), "210 M"),
        (count(999_999), "1.00 M"),
        (count(12), "12"),
        (count(986_112, 2e6), "0.986 M"),
        (significant(0), "0"),
        (significant(0.01234), "0.0123"),
        (significant(812.4), "812"),
        (significant(99_999.0), "99999"),
        (difference(-0.04), "0.0"),
        (difference(1.26), "+1.3"),
        (difference(-1.26), "\N{MINUS SIGN}1.3"),
        (percent(1 / 3), "33.3 %"),
        (duration(59.6), "1 min 0 s"),
        (duration(3.21), "3.2 s"),
        (duration(7260), "2 h 1 min"),
    ],
)
def test_numbers_are_short(shown, wanted):
    assert shown == wanted


def test_other_tasks_have_a_block_each_compared_with_the_teacher(make_demo):
    demo = make_demo()
    names = [model["name"] for model in demo["models"]]
    rows = dict(zip(names, ([71.25, 70.0], [60.0, None], [70.5, 69.75]), strict=True))
    demo["tasks"] = {"SNLI-VE": {"columns": ["val", "test"], "rows": rows}}
    lines = [line.split() for line in format_table(demo).splitlines()]
    start = next(i for i, line in enumerate(lines) if line[:1] == ["SNLI-VE"])
    assert [line[-2:] for line in lines[start + 2 : start + 5]] == [["71.2", "70.0"], ["-", "-11.2"], ["69.8", "-0.8"]]


def test_a_task_without_a_row_for_every_model_is_refused(make_demo):
    demo = make_demo()
    demo["tasks"] = {"VQA": {"columns": ["all"], "rows": {"PELA": [1.0]}}}
    with pytest.raises(UserError, match="tasks.VQA.rows"):
        format_table(demo)
