"""The sheet of questions: what a person sees."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from pela_vl.report.vqa_sheet import _PARTLY, _RIGHT, _WRONG, Answered, spread, write_sheet


@given(st.integers(0, 200), st.integers(1, 30))
def test_questions_are_spread_evenly(total, count):
    chosen = spread(total, count)
    assert len(chosen) == len(set(chosen)) == min(total, count) and all(0 <= i < total for i in chosen)
    gaps = np.diff([*chosen, total])
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def has(picture, colour):
    return bool((np.asarray(picture) == ImageColor.getrgb(colour)).all(-1).any())


def test_right_partly_right_and_wrong_answers_look_different(tmp_path):
    people = ["cat"] * 8 + ["dog"] * 2
    for answer, colour in (("cat", _RIGHT), ("dog", _PARTLY), ("bird", _WRONG)):
        ranked = [(answer, 0.75), ("a very long answer that does not fit on the line", 0.25)]
        picture = Image.new("RGB", (40, 20), "#123456")
        write_sheet(tmp_path / "s.png", [Answered(picture, "What is it? " * 9, ranked, people)] * 5)
        with Image.open(tmp_path / "s.png") as sheet:
            assert sheet.size == (4 * 430, 2 * 192)  # five questions take two rows of four
            assert has(sheet, "#123456")
            assert [has(sheet, c) for c in (_RIGHT, _PARTLY, _WRONG)] == [
                c == colour for c in (_RIGHT, _PARTLY, _WRONG)
            ]
