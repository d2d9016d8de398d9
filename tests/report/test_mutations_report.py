"""What is below the teacher has a minus, what is above a plus."""

from pela_vl.report import format_table, tables
from pela_vl.report.schema import Task, parse_demo


def smalls(table: tables.Table, name: str) -> list[str]:
    row = next(row for row in table.bodies[0].rows if row.name == name)
    return [cell.small for cell in row.cells if cell.small]


def test_signs_of_the_recall_table(make_demo):
    demo = parse_demo(make_demo())
    below = smalls(tables.recall_table(demo), "truncated (SVD only)")
    assert below[0] == "\N{MINUS SIGN}29.5" and len(below) == 7  # 31.7 - 61.2
    assert smalls(tables.recall_table(demo), "teacher (dense)") == []


def test_signs_of_a_tasks_table():
    task = Task("VQA", ("all",), {"teacher": (50.0,), "better": (51.5,), "worse": (48.0,)})
    table = tables.task_table(task)
    assert smalls(table, "better") == ["+1.5"] and smalls(table, "worse") == ["\N{MINUS SIGN}2.0"]


def test_signs_of_the_key_figures_and_of_the_terminals_table(make_demo):
    run = make_demo()
    tiles = tables.key_figures(parse_demo(run))
    # mean recall: 61.2 + 32.5 / 6 zero-shot and 70.1 fine-tuned against 31.7 and 58.4
    assert tiles[1].value == "37.1 %" and "\N{MINUS SIGN}29.5 points against" in tiles[1].text
    assert tiles[1].text.endswith("63.8 % fine-tuned (\N{MINUS SIGN}11.7)")
    assert tiles[0].value == "66.6 %" and tiles[0].text == "mean recall zero-shot; 75.5 % fine-tuned"
    assert tiles[2].size == "0.986 M parameters, 48 % of the teacher"
    lines = [line.split() for line in format_table(run).splitlines() if line.startswith("truncated")]
    assert [line[-1] for line in lines[1:3]] == ["-29.5", "-11.7"]
    rows = {"teacher (dense)": [50.0], "truncated (SVD only)": [48.0], "PELA": [51.5]}
    run["tasks"] = {"VQA": {"columns": ["all"], "rows": rows}}
    line = next(line for line in format_table(run).split("VQA")[1].splitlines() if line.startswith("PELA"))
    assert line.split()[-2:] == ["51.5", "+1.5"]
