"""The house stays small: no more rooms, floors and arrows between rooms than it was planned with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from structure import arrows, floors  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def test_the_house_is_no_larger_than_planned() -> None:
    rooms, found = arrows(ROOT)
    assert len(rooms) <= 23 and max(floors(rooms, found).values()) <= 8 and len(found) <= 99


def test_a_circle_is_named(tmp_path: Path) -> None:
    for room, other in (("one", "two"), ("two", "one")):
        (tmp_path / "pela_vl" / room).mkdir(parents=True)
        (tmp_path / "pela_vl" / room / "part.py").write_text(f"from pela_vl.{other}.part import x\n")
    with pytest.raises(ValueError, match="circle.*one.*two"):
        floors(*arrows(tmp_path))
