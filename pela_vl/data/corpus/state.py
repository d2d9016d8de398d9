"""What a build remembers on disk: how far it is, what was seen, what was counted. Changes count from `commit` on."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS units (number INTEGER PRIMARY KEY, records INTEGER);
CREATE TABLE IF NOT EXISTS counts (source TEXT, what TEXT, name TEXT, number INTEGER,
                                   PRIMARY KEY (source, what, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, bytes INTEGER, samples INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held_out (key BLOB PRIMARY KEY) WITHOUT ROWID;
"""
Counts = Counter[tuple[str, str, str]]


class State:
    """One SQLite file. Everything between two calls of `commit` is undone when the process dies."""

    def __init__(self, path: Path) -> None:
        try:
            self._table = sqlite3.connect(path, isolation_level=None)
            self._table.execute("PRAGMA cache_size = -16384")  # 16 MiB, so that memory does not grow with the corpus
            self._table.executescript(_TABLES)
            self._table.execute("BEGIN")
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be used ({error}); remove its folder and begin again") from None
        self.path = path

    def close(self) -> None:
        """Forget what was not committed."""
        self._table.close()

    def commit(self) -> None:
        try:
            self._table.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: cannot be written ({error}); mend that and run again to go on") from None
        self._table.execute("BEGIN")

    def fact(self, name: str, default: Any) -> Any:
        row = self._table.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def set_fact(self, name: str, value: Any) -> None:
        self._table.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def unit_records(self) -> dict[int, int]:
        """Number of records of each unit that has been listed."""
        return dict(self._table.execute("SELECT number, records FROM units"))

    def set_unit_records(self, number: int, records: int) -> None:
        self._table.execute("INSERT OR REPLACE INTO units VALUES (?, ?)", (number, records))

    def count(self, counts: Counts) -> None:
        """Add to the counts of (source, what, name)."""
        rows = [(*key, number) for key, number in counts.items()]
        self._table.executemany(
            "INSERT INTO counts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET number = number + excluded.number", rows
        )

    def counts(self) -> Counts:
        rows = self._table.execute("SELECT source, what, name, number FROM counts")
        return Counter({(source, what, name): number for source, what, name, number in rows})

    def is_new(self, key: bytes) -> bool:
        """Whether `key` has not been asked for before; it has now."""
        return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1

    def has_seen(self, key: bytes) -> bool:
        return self._table.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None

    def hold_out(self, keys: Iterable[bytes]) -> None:
        self._table.executemany("INSERT OR IGNORE INTO held_out VALUES (?)", ((key,) for key in keys))

    def is_held_out(self, key: bytes) -> bool:
        return self._table.execute("SELECT 1 FROM held_out WHERE key = ?", (key,)).fetchone() is not None

    def files(self) -> dict[str, tuple[int, int]]:
        """(bytes, samples) of each output file as of the last commit, in the order of names."""
        rows = self._table.execute("SELECT name, bytes, samples FROM files ORDER BY name")
        return {name: (size, samples) for name, size, samples in rows}

    def set_file(self, name: str, size: int, samples: int) -> None:
        self._table.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (name, size, samples))
