"""Tables of captions: a mark out of place spoils its own row alone, and every row is accounted for."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pela_vl.base.errors import UserError
from pela_vl.data.corpus.table import table_records
from pela_vl.data.public.own import read_table
from pela_vl.data.rows import read_rows, split_cells

CELL = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=("Cs",)), max_size=12)


@given(st.lists(CELL, min_size=1, max_size=4), st.sampled_from(",;"))
def test_cells_are_those_of_the_csv_module_where_it_wrote_them(cells, delimiter):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="").writerow(cells)
    assert split_cells(stream.getvalue(), delimiter) == cells


@pytest.mark.parametrize(
    "line, cells",
    [
        ('a.jpg,"Hello" she said', ["a.jpg", '"Hello" she said']),
        ('a.jpg,a sign that says "stop"', ["a.jpg", 'a sign that says "stop"']),
        ('"a.jpg","one, ""two"", three"', ["a.jpg", 'one, "two", three']),
        ('a.jpg,"no end', None),
        ("a.jpg,", ["a.jpg", ""]),
        ("", [""]),
    ],
)
def test_what_is_a_quoted_cell(line, cells):
    assert split_cells(line, ",") == cells


@pytest.fixture
def photos(tmp_path):
    """20 rows; the caption of the fifth begins with a mark that is never closed, the ninth is cut by commas."""
    rows = [f"{k}.jpg,image number {k}" for k in range(20)]
    rows[4] = '4.jpg,"a caption with one mark'
    rows[8] = "8.jpg,a dog, a cat, and a bird"
    rows[12] = '12.jpg,"a dog, a cat, and a bird"'
    rows[15] = '15.jpg,"two\nlines"'
    rows[17] = '17.jpg,a sign "stop"'
    for k in range(20):
        (tmp_path / f"{k}.jpg").write_bytes(b"x")
    (tmp_path / "t.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return tmp_path


def test_own_pictures_lose_no_row_silently(photos):
    with pytest.raises(UserError, match="t.csv: line 6: a quotation mark is not closed"):
        read_table(photos / "t.csv", photos)
    table = read_table(photos / "t.csv", photos, skip_bad=True)
    assert [place for place, _ in table.bad] == [f"{photos / 't.csv'}: line {k}" for k in (6, 10)]
    assert "4 cells for 2 columns" in table.bad[1][1]
    assert len(table.captions) == 18 and table.rows == 20
    assert table.captions["12.jpg"] == ["a dog, a cat, and a bird"] and table.captions["15.jpg"] == ["two\nlines"]
    assert table.captions["17.jpg"] == ['a sign "stop"']


def test_the_corpus_counts_what_the_file_holds(photos):
    records = list(table_records("own", str(photos / "t.csv"), str(photos)))
    assert [r.id for r in records] == list(range(20))
    bad = {r.id: r.detail for r in records if r.problem}
    assert set(bad) == {4, 8} and bad[4].startswith("line 6: ") and bad[8] == "line 10: 4 cells for 2 columns"
    assert records[12].captions == ["a dog, a cat, and a bird"]


def test_a_tsv_has_no_quoting_and_a_third_cell_is_said(tmp_path):
    (tmp_path / "cc.tsv").write_text('"half a quote\thttp://x.org/1\na\tb\thttp://x.org/2\nc\thttp://x.org/3\tlabel\n')
    records = list(table_records("cc", str(tmp_path / "cc.tsv"), "/pics"))
    assert [(r.captions, r.problem) for r in records] == [
        (['"half a quote'], None),
        ([None], "malformed_entry"),
        (["c"], None),
    ]
    assert records[1].detail.startswith("line 2: ")


def test_marks_left_open_at_the_end_and_over_many_lines(tmp_path):
    (tmp_path / "a.csv").write_text('image,caption\na.jpg,"open\nb.jpg,two\n')
    assert [(row.line, row.cells) for row in read_rows(tmp_path / "a.csv")] == [
        (1, ["image", "caption"]),
        (2, []),
        (3, ["b.jpg", "two"]),
    ]
    (tmp_path / "b.csv").write_bytes(b'\xef\xbb\xbfimage,caption,,\r\na.jpg,one,,\r\n\r\nb.jpg,"x",\r\n')
    assert [row.cells for row in read_rows(tmp_path / "b.csv")][1:] == [["a.jpg", "one", "", ""], ["b.jpg", "x", ""]]
