"""The set of keys on disk against Python's own set, over kills and merges."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pela_vl.base.errors import UserError
from pela_vl.data.corpus import keys as module
from pela_vl.data.corpus.gate import Gate
from pela_vl.data.corpus.keys import KeySet, key
from pela_vl.data.corpus.outputs import AppendedFiles, ListWriter
from pela_vl.data.corpus.records import Finding
from pela_vl.data.corpus.state import State

# near the borders of the parts, and few enough to come twice
numbers = st.one_of(
    st.integers(0, 2**64 - 1), st.builds(lambda part, by: (part << 58) + by, st.integers(0, 63), st.integers(0, 2))
)
steps = st.lists(
    st.one_of(st.tuples(st.just("add"), numbers), st.sampled_from([("save", 0), ("kill", 0)])), max_size=60
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, recent=st.sampled_from([1, 3, 1 << 18]))
def test_as_a_set_that_forgets_what_was_not_saved(steps, recent, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_RECENT", recent)
    path = tmp_path / "x.keys"
    path.unlink(missing_ok=True)
    held, known, committed = KeySet(path, 0), set(), set()
    for what, number in steps:
        if what == "add":
            assert held.add(number) == (number not in known)
            known.add(number)
        elif what == "save":
            assert held.save() == len(known) == path.stat().st_size // 8
            committed = set(known)
        else:
            held, known = KeySet(path, len(committed)), set(committed)
        assert len(held) == len(known)
    around = known | {(number + 1) % 2**64 for number in known} | {number - 1 for number in known if number}
    assert {number for number in around if number in held} == known


def test_what_was_written_and_not_committed_is_cut_off(tmp_path):
    held = KeySet(tmp_path / "x.keys", 0)
    for number in range(10):
        held.add(number << 60)
    held.save()
    again = KeySet(tmp_path / "x.keys", 4)
    assert [number for number in range(10) if number << 60 in again] == [0, 1, 2, 3]
    assert (tmp_path / "x.keys").stat().st_size == 32


def test_a_file_that_lost_content_is_refused(tmp_path):
    (tmp_path / "x.keys").write_bytes(bytes(24))
    with pytest.raises(UserError, match=r"x\.keys: has lost content since it was written"):
        KeySet(tmp_path / "x.keys", 4)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(tmp_path):
    held = KeySet(tmp_path / "x.keys", 0)
    held.add(5)
    held.path = Path("/dev/full")
    with pytest.raises(UserError, match=r"^/dev/full: cannot be written \(No space left on device\); .* to go on$"):
        held.save()


def test_keys_tell_values_apart_as_joined_texts_would_not():
    values = [
        ("id", "a", "b"),
        ("id", "ab"),
        ("id", "a\0b"[:1], "b", ""),
        ("name", "a", "b"),
        ("id", 1),
        ("id", "\udcff"),
    ]
    assert len({key(*value) for value in values}) == len(values) and max(map(key, map(str, range(64)))) > 2**63


def gate(folder: Path) -> Gate:
    state = State(folder / "state.sqlite")
    files = AppendedFiles(folder / "out", state)
    return Gate(state, files, ListWriter(files, "/images", ["web"]))


def commit(held: Gate) -> None:
    held.save()
    held.files.sync()
    held.state.set_fact("records", 1)
    held.state.commit()


def test_a_gate_that_is_made_anew_knows_what_was_committed_and_no_more(tmp_path):
    def finding(number: int, **more) -> Finding:
        return Finding("web", number, 1, [f"flickr:{number}"], captions=["a"], digest=bytes([number] * 16), **more)

    first = gate(tmp_path)
    first.take(finding(9, held_out=True, held_out_of=["web"]))
    first.take(finding(1, path="/images/./a/../b.jpg"))
    commit(first)
    first.take(finding(2, path="/images/2.jpg"))
    first.save()  # written, then killed before the commit
    first.state.close()
    again = gate(tmp_path)
    for number in (9, 1, 2, 2):
        again.take(finding(number, path="/elsewhere/2.jpg"))
    commit(again)
    lines = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["held_out_id", "duplicate_id", "duplicate_id"]
    entries = json.loads((tmp_path / "out" / "web.json").read_text() + "]")
    assert [entry["image"] for entry in entries] == ["b.jpg", "../elsewhere/2.jpg"]


def test_a_build_begun_with_another_form_of_state_is_not_gone_on_with(tmp_path):
    state = State(tmp_path / "state.sqlite")
    state.set_fact("records", 64)
    state.commit()
    state.close()
    with pytest.raises(UserError, match="was begun by another version of pela_vl; remove its folder"):
        gate(tmp_path)
