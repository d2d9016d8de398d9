"""Progress of a corpus build, on disk: position, counts, file lengths. Changes take effect at `commit`."""

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS units (number INTEGER PRIMARY KEY, records INTEGER);
CREATE TABLE IF NOT EXISTS counts (source TEXT, what TEXT, name TEXT, number INTEGER,
                                   PRIMARY KEY (source, what, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, bytes INTEGER, samples INTEGER) WITHOUT ROWID;
"""
Counts = Counter[tuple[str, str, str]]


def unwritable(path: Path, error: sqlite3.Error) -> UserError:
    return UserError(f"{path}: cannot be written ({error}); mend that (a full disk?) and run again to go on")


class State:
    """One SQLite file. Changes since the last `commit` are undone when the process dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._table = sqlite3.connect(path, isolation_level=None)
            self._table.execute("PRAGMA journal_mode = WAL")  # a commit only appends
            self._table.execute("PRAGMA synchronous = NORMAL")  # a resumed run checks the files' lengths
            self._table.executescript(_TABLES)
            self._table.execute("BEGIN")
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be used ({error}); remove its folder and begin again") from None

    def _run(self, statement: str, values: Any = (), many: bool = False) -> sqlite3.Cursor:
        """Run a statement; a full or broken disk is a `UserError`, after which the run can be resumed."""
        try:
            return self._table.executemany(statement, values) if many else self._table.execute(statement, values)
        except sqlite3.Error as error:
            raise unwritable(self.path, error) from None

    def close(self) -> None:
        """Discard what was not committed."""
        self._table.close()

    def commit(self) -> None:
        self._run("COMMIT")
        self._run("BEGIN")

    def fact(self, name: str, default: Any) -> Any:
        row = self._run("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def set_fact(self, name: str, value: Any) -> None:
        self._run("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def unit_records(self) -> dict[int, int]:
        """Number of records of each unit that has been listed."""
        return dict(self._run("SELECT number, records FROM units"))

    def set_unit_records(self, number: int, records: int) -> None:
        self._run("INSERT OR REPLACE INTO units VALUES (?, ?)", (number, records))

    def count(self, counts: Counts) -> None:
        """Add to the counts of (source, what, name)."""
        rows = [(*key, number) for key, number in counts.items()]
        self._run(
            "INSERT INTO counts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET number = number + excluded.number",
            rows,
            many=True,
        )

    def counts(self) -> Counts:
        rows = self._run("SELECT source, what, name, number FROM counts")
        return Counter({(source, what, name): number for source, what, name, number in rows})

    def files(self) -> dict[str, tuple[int, int]]:
        """(bytes, samples) of each output file as of the last commit, in the order of names."""
        rows = self._run("SELECT name, bytes, samples FROM files ORDER BY name")
        return {name: (size, samples) for name, size, samples in rows}

    def set_file(self, name: str, size: int, samples: int) -> None:
        """Record the length of an output file, which a resumed build truncates the file to.

        Args:
            name: of the file.
            size: bytes.
            samples: samples in it.
        """
        self._run("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (name, size, samples))
