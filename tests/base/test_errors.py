"""How scripts start and end: home folders, and streams that cannot show every character."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pela_vl.base.errors import expand_home

ROOT = Path(__file__).parents[2]
SCRIPT = """
import argparse
from pathlib import Path
from pela_vl.base.errors import run_main
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--coco", nargs="+")
    parser.add_argument("--set", action="append")
    args = parser.parse_args()
    print(args.output, args.coco, args.set, "\u2713 \u00e9 \u732b")
run_main(main)
"""


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/home/me", "USERPROFILE": "/home/me"} | environment,
    )


def test_the_command_lines_home_folder_is_expanded_in_every_script():
    done = run("--output=~/runs", "--coco", "~/a.json", "~", "b~/c", "--set", "a=~", PYTHONIOENCODING="utf-8")
    assert done.stdout.decode().startswith("/home/me/runs ['/home/me/a.json', '/home/me', 'b~/c'] ['a=~']"), done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_show_a_character_does_not_end_the_run(encoding):
    done = run(PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"\\u2713" in done.stdout and b"\\u732b" in done.stdout


def test_a_tilde_within_a_text_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [expand_home(text) for text in ("~", "~/a", "~b", "a/~/b", "~ 5", "")] == [
        "/home/me", "/home/me/a", "~b", "a/~/b", "~ 5", ""
    ]  # fmt: skip


def test_every_script_starts_through_run_main():
    for folder in ("tasks", "data_prep"):
        for script in (ROOT / folder).glob("*.py"):
            assert script.name == "__init__.py" or "run_main(main)" in script.read_text(encoding="utf-8"), script
