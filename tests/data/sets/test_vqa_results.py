"""Result files: one answer for each question of the official file, or an error that lists what is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pela_vl.base.errors import UserError
from pela_vl.data.sets.vqa_results import check_results, read_results, write_results

IDS = [30, 10, 20]


def results(*ids):
    return [{"question_id": number, "answer": f"a{number}"} for number in ids]


def test_a_whole_file_passes_in_any_order(tmp_path):
    assert check_results(results(10, 20, 30), IDS, "x") == {10: "a10", 20: "a20", 30: "a30"}
    write_results(tmp_path / "r.json", {10: "a10", 20: "", 30: "caf\u00e9"}, IDS)
    assert [e["question_id"] for e in json.loads((tmp_path / "r.json").read_text())] == IDS
    assert read_results(tmp_path / "r.json", IDS) == {10: "a10", 20: "", 30: "caf\u00e9"}


@given(st.lists(st.integers(0, 8), max_size=12), st.sets(st.integers(0, 8), min_size=1))
def test_every_missing_repeated_and_unknown_id_is_listed(given_ids, ids):
    faults = {
        "missing": ids - set(given_ids),
        "given more than once": {n for n in given_ids if given_ids.count(n) > 1},
        "unknown": set(given_ids) - ids,
    }
    if not any(faults.values()):
        assert set(check_results(results(*given_ids), sorted(ids), "x")) == ids
        return
    with pytest.raises(UserError) as caught:
        check_results(results(*given_ids), sorted(ids), "x")
    told = dict(part.strip().split(": ", 1) for part in str(caught.value).split("questions: ", 1)[1].split(";"))
    assert set(told) == {name for name, found in faults.items() if found}
    for name, text in told.items():
        assert {int(n) for n in text[text.index("(") + 1 : -1].split(", ")} == faults[name]


def test_long_lists_are_cut_but_counted():
    with pytest.raises(UserError, match=r"missing: 100 question ids \(0, 1, .*, 19, \.\.\.\)"):
        check_results([], list(range(100)), "x")


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"a": 1}, "x: wants a list of {question_id, answer}, got an object"),
        ([3], r"x: \[0\]: wants an object"),
        ([{"answer": "a"}], r"x: \[0\]\.question_id: is missing"),
        ([{"question_id": "10", "answer": "a"}], r"\[0\]\.question_id: wants a whole number, got a text"),
        ([{"question_id": True, "answer": "a"}], r"\[0\]\.question_id"),
        ([{"question_id": 10, "answer": None}], r"\[0\]\.answer: wants a text, got null"),
        ([{"question_id": 10, "answer": 2}], r"\[0\]\.answer: wants a text, got 2"),
    ],
)
def test_malformed_results(bad, message):
    with pytest.raises(UserError, match=message):
        check_results(bad, IDS, "x")


def test_nothing_is_written_that_does_not_pass(tmp_path):
    with pytest.raises(UserError, match=r"missing: 1 question id \(20\); unknown: 1 question id \(99\)"):
        write_results(tmp_path / "r.json", {10: "a", 30: "b", 99: "c"}, IDS)
    assert not list(tmp_path.iterdir())
