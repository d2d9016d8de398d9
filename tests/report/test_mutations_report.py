"""What is below the teacher has a minus, what is above a plus."""

import re

from pela_vl.report import tables
from pela_vl.report.schema import Task, parse_demo


def smalls(html: str, name: str) -> list[str]:
    row = re.search(rf"<th[^>]*>{re.escape(name)}</th>(.*?)</tr>", html)[1]
    return re.findall(r"<small>([^<]*)</small>", row)


def test_signs_of_the_recall_table(make_demo):
    demo = parse_demo(make_demo())
    below = smalls(tables.recall_table(demo), "truncated (SVD only)")
    assert below[0] == "\N{MINUS SIGN}29.5" and len(below) == 7  # 31.7 - 61.2
    assert smalls(tables.recall_table(demo), "teacher (dense)") == []


def test_signs_of_a_tasks_table():
    task = Task("VQA", ("all",), {"teacher": (50.0,), "better": (51.5,), "worse": (48.0,)})
    html = tables.task_table(task)
    assert smalls(html, "better") == ["+1.5"] and smalls(html, "worse") == ["\N{MINUS SIGN}2.0"]
