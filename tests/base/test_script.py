"""--help of every script opens with what it does and with an example of itself."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from pela_vl.base.script import script_parser

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(ROOT / "tasks").glob("*.py"), *(ROOT / "data_prep").glob("*.py")])


def test_help_opens_with_the_description_and_is_the_same_twice():
    parser = script_parser("What it does.\n\npython x.py --a 1\n")
    parser.add_argument("--a", type=int)
    text = parser.format_help()
    assert text.startswith("What it does.\n\npython x.py --a 1\n\nusage:") and text.count("What it does") == 1
    assert parser.format_help() == text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_shows_an_example_first(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="script")["main"]()
    shown = capsys.readouterr().out
    example = re.search(rf"(python|deepspeed) {script.parent.name}/{script.name}", shown)
    assert end.value.code == 0 and example and example.start() < shown.index("usage:"), shown[:300]
