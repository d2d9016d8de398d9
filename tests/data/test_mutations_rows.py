"""Changes of the readers of tables, paths and pickles that nothing else notices."""

import pickle

import pytest

from pela_vl.base.errors import UserError
from pela_vl.data.paths import resolve
from pela_vl.data.plain_pickle import read_plain_pickle
from pela_vl.data.rows import read_rows, split_cells
from pela_vl.data.text import clean_question


def rows(tmp_path, text: str | bytes, name: str = "t.csv") -> list[tuple[int, list[str], bool]]:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(row.line, row.cells, bool(row.problem)) for row in read_rows(tmp_path / name)]


def test_lines_are_counted_over_cells_that_span_several(tmp_path):
    text = 'image,caption\na.jpg,"one\ntwo\nthree"\n\nb.jpg,x\nc.jpg,"four\nfive"\nd.jpg,"open\ne.jpg,y\n'
    assert rows(tmp_path, text) == [
        (1, ["image", "caption"], False),
        (2, ["a.jpg", "one\ntwo\nthree"], False),
        (6, ["b.jpg", "x"], False),
        (7, ["c.jpg", "four\nfive"], False),
        (9, [], True),
        (10, ["e.jpg", "y"], False),
    ]


@pytest.mark.parametrize("width", [2, 3])
def test_a_whole_row_is_never_taken_into_an_open_cell(tmp_path, width):
    more = ",z" * (width - 2)
    text = (
        f'image,caption{",id" * (width - 2)}\r\na.jpg,"open{more}\r\nb.jpg,a sign "stop"{more}\r\nc.jpg,"end"{more}\r\n'
    )
    assert [problem for _, _, problem in rows(tmp_path, text)] == [False, True, False, False]


def test_the_first_row_has_no_byte_order_mark_and_ends_keep_their_blanks(tmp_path):
    text = b'\xef\xbb\xbfimage,caption\r\na.jpg,one,\r\nb.jpg, two \r\nc.jpg,"x"\r\nd.jpg,caf\xe9\r\n'
    assert [cells for _, cells, _ in rows(tmp_path, text)] == [
        ["image", "caption"],
        ["a.jpg", "one"],
        ["b.jpg", " two "],
        ["c.jpg", "x"],
        ["d.jpg", "caf\udce9"],
    ]
    assert rows(tmp_path, "a\tb\t\r\n", "t.tsv") == [(1, ["a", "b", ""], False)]


def test_a_mark_without_an_end_within_many_lines(tmp_path):
    text = 'caption,image\n"open,\n' + "".join(f"word {k}\n" for k in range(60)) + "x,y\n"
    found = rows(tmp_path, text)
    assert found[1] == (2, [], True) and found[2] == (3, ["word 0"], False) and found[-1] == (63, ["x", "y"], False)
    (tmp_path / "long.csv").write_text('caption,image\n"' + "line\n" * 49 + 'end",a.jpg\n')
    assert [(row.line, row.cells[-1]) for row in read_rows(tmp_path / "long.csv")] == [(1, "image"), (2, "a.jpg")]


@pytest.mark.parametrize(
    "line, cells",
    [
        ('"a""",b', ['a"', "b"]),
        ('"""a""",b', ['"a"', "b"]),
        ('"a,b" c,d', None),
        ('x,"Hello" she said,y,z', ["x", '"Hello" she said', "y", "z"]),
        ('"Hello" she said', ['"Hello" she said']),
        ('"",a', ["", "a"]),
    ],
)
def test_marks_inside_cells(line, cells):
    assert split_cells(line, ",") == cells


def test_the_words_of_refusals(tmp_path):
    for path, words in (
        ("/etc/x", "'/etc/x' is absolute and lies elsewhere than the"),
        ("../x", "'../x' is not below the"),
    ):
        with pytest.raises(UserError, match=f"image path {words} image root"):
            resolve(tmp_path, path)
    assert resolve("/", "x") == "/x"
    (tmp_path / "g.p").write_bytes(b"cos\nsystem\n.")
    with pytest.raises(UserError, match=r"holds the name os\.system at byte 0"):
        read_plain_pickle(tmp_path / "g.p")
    (tmp_path / "s.p").write_bytes(pickle.dumps(print, 4))
    with pytest.raises(UserError, match="holds the instruction STACK_GLOBAL at byte"):
        read_plain_pickle(tmp_path / "s.p")


@pytest.mark.parametrize("text", [b"(lp9\n.", b"]q\x09.", b"]r\x09\x00\x00\x00."])
def test_memo_numbers_beyond_the_instructions_are_damage(tmp_path, text):
    (tmp_path / "m.p").write_bytes(text)
    with pytest.raises(UserError, match="memo number 9 at byte"):
        read_plain_pickle(tmp_path / "m.p")
    (tmp_path / "n.p").write_bytes(b"]q\x01.")
    assert read_plain_pickle(tmp_path / "n.p") == []


def test_a_question_has_thirty_words_unless_told():
    assert clean_question(" ".join("w" * k for k in range(1, 40))).count(" ") == 29
