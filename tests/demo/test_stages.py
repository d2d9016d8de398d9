"""The demo's stages: done once, redone when what they depend on changes, picked up after a failure."""

import pytest

from pela_vl.base.errors import UserError
from pela_vl.demo import stages
from pela_vl.demo.stages import Stage, run_stages

APPEND = "import sys; open(sys.argv[1], 'a').write('x')"


def append(path, resumable=False, text=APPEND):
    return Stage("append", ["-c", text, str(path)], [path], resumable)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "input"
    path.write_text("one")
    return path


def test_finished_stages_are_not_run_again(tmp_path, source):
    output = tmp_path / "out"
    first = run_stages([append(output)], tmp_path, [source])
    second = run_stages([append(output)], tmp_path, [source])
    assert output.read_text() == "x"
    assert second == pytest.approx(first)


def test_a_changed_input_reruns_everything_from_nothing(tmp_path, source):
    first, second = tmp_path / "a", tmp_path / "b"
    run_stages([append(first), append(second, resumable=True)], tmp_path, [source])
    source.write_text("two")
    run_stages([append(first), append(second, resumable=True)], tmp_path, [source])
    assert (first.read_text(), second.read_text()) == ("x", "x")


def test_a_changed_command_reruns_what_comes_after_but_not_before(tmp_path, source):
    before, changed, after = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    run_stages([append(before), append(changed), append(after)], tmp_path, [source])
    before.write_text("kept")
    after.write_text("old")
    run_stages([append(before), append(changed, text=APPEND + "  # again"), append(after)], tmp_path, [source])
    assert (before.read_text(), after.read_text()) == ("kept", "x")


def test_lost_output_is_made_again(tmp_path, source):
    output = tmp_path / "out"
    run_stages([append(output)], tmp_path, [source])
    output.unlink()
    run_stages([append(output)], tmp_path, [source])
    assert output.read_text() == "x"


@pytest.mark.parametrize(("resumable", "left"), [(True, "xx"), (False, "x")])
def test_after_a_failure_only_a_resumable_stage_keeps_what_was_left(tmp_path, source, resumable, left):
    output, gate = tmp_path / "out", tmp_path / "gate"
    text = APPEND + f"; import os; sys.exit(0 if os.path.exists({str(gate)!r}) else 3)"
    with pytest.raises(UserError, match="ended with 3"):
        run_stages([append(output, resumable, text)], tmp_path, [source])
    gate.touch()
    run_stages([append(output, resumable, text)], tmp_path, [source])
    assert output.read_text() == left


def test_a_changed_configuration_reruns(tmp_path, source):
    output, config = tmp_path / "out", tmp_path / "run.yaml"
    stage = append(output)
    stage.command += ["--config", str(config)]
    for content, left in (("output: a", "x"), ("output: a  # a remark", "kept"), ("output: b", "x")):
        config.write_text(content)
        stages._settings.cache_clear()  # a new call of the demo reads it anew
        run_stages([stage], tmp_path, [source])
        assert output.read_text() == left
        output.write_text("kept")
