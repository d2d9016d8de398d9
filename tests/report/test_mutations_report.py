"""What is below the teacher has a minus, what is above a plus."""

from pela_vl.report import tables
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
