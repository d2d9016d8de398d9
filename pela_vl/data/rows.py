"""Rows of a table of captions (CSV or TSV), parsed so that a misplaced quotation mark spoils only its row.

In CSV a cell may be quoted, and a quoted cell may hold separators, doubled quotation marks and line breaks. TSV has no
quoting.
"""

import codecs
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from pela_vl.base.errors import UserError
from pela_vl.data.paths import unreadable

_LONGEST = 50  # lines that a quoted cell may span; beyond that the quotation mark counts as unclosed


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        line: number of its first line, from 1.
        problem: why it cannot be split into cells; "" if it can.
    """

    line: int
    cells: list[str]
    problem: str = ""


def read_rows(path: str | os.PathLike[str], delimiter: str | None = None) -> Iterator[Row]:
    """Yield the rows of a UTF-8 table without empty lines and byte order mark.

    The delimiter None is that of `delimiter_of`. Bytes that are not UTF-8 are kept as lone surrogates. A header is a row
    like any other.

    Raises:
        UserError: If the file is absent or unreadable.
    """
    if delimiter is None:
        delimiter = delimiter_of(path)
    try:
        with open(path, "rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            # split at line feeds alone: other line separators of Unicode belong to captions
            lines = (line.decode("utf-8", "surrogateescape") for line in file)
            yield from _rows(lines, delimiter)
    except FileNotFoundError:
        raise UserError(f"{os.fspath(path)}: no such file; name the table of captions") from None
    except OSError as error:
        raise unreadable(path, error) from None


def delimiter_of(path: str | os.PathLike[str]) -> str:
    """A comma for names that end in `.csv`, and a tab otherwise."""
    return "," if os.fspath(path).lower().endswith(".csv") else "\t"


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    source = iter(lines)
    ahead: deque[str] = deque()
    number = 0
    columns = 0  # of the first row; a line with as many cells is a row even if a quotation mark before it is open
    while True:
        if not ahead:
            ahead.extend(islice(source, 1))
        if not ahead:
            return
        line = ahead.popleft()
        number += 1
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        cells = text.split(delimiter) if delimiter == "\t" else split_cells(text, delimiter)
        taken = 0
        if cells is None:
            ahead.extend(islice(source, max(_LONGEST - len(ahead), 0)))
            cells, taken = _over_lines(line, ahead, delimiter, columns)
        if cells is None:
            yield Row(number, [], "a quotation mark is not closed; close it, or double it inside a quoted cell")
        else:
            cells = _without_trailing(cells, columns)
            columns = columns or len(cells)
            yield Row(number, cells)
        for _ in range(taken):
            ahead.popleft()
        number += taken


def split_cells(text: str, delimiter: str) -> list[str] | None:
    """The cells of one row of CSV; None when a quoted cell does not end.

    A cell is quoted when it begins with a quotation mark whose partner stands before a delimiter or the end. Other
    quotation marks are ordinary characters: `"Hello" she said` is a cell as it stands.
    """
    cells, at = [], 0
    while True:
        if text.startswith('"', at):
            cell, end = _quoted(text, at, delimiter)
            if cell is None:
                return None
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            cell = text[at:end]
        cells.append(cell)
        if end >= len(text):
            return cells
        at = end + 1


def _quoted(text: str, start: int, delimiter: str) -> tuple[str | None, int]:
    """Content and end of the quoted cell that begins at `start`; (None, 0) if it does not end."""
    at = start + 1
    while (mark := text.find('"', at)) >= 0:
        after = text[mark + 1 : mark + 2]
        if after == '"':
            at = mark + 2
            continue
        if after in ("", delimiter):
            return text[start + 1 : mark].replace('""', '"'), mark + 1
        # a single quotation mark inside: the cell was not meant to be quoted
        end = text.find(delimiter, start)
        end = len(text) if end < 0 else end
        return (text[start:end], end) if mark < end else (None, 0)
    return None, 0


def _over_lines(line: str, ahead: Iterable[str], delimiter: str, columns: int) -> tuple[list[str] | None, int]:
    """Cells of a row whose quoted cell continues on following lines, and how many lines; (None, 0) if it does not end.

    A line that is a complete row by itself, with as many cells as the first row, never becomes part of a cell.
    """
    text = line
    for taken, following in enumerate(ahead, 1):
        # with an odd number of quotation marks the line ends a cell that began before
        alone = split_cells(following.rstrip("\r\n"), delimiter) if following.count('"') % 2 == 0 else None
        if columns > 1 and alone is not None and len(_without_trailing(alone, columns)) == columns:
            return None, 0
        text += following
        cells = split_cells(text.rstrip("\r\n"), delimiter)
        if cells is not None:
            return cells, taken
    return None, 0


def _without_trailing(cells: list[str], columns: int) -> list[str]:
    """Remove empty cells beyond the named columns, with which spreadsheets end rows."""
    while columns and len(cells) > columns and not cells[-1].strip():
        cells = cells[:-1]
    return cells
