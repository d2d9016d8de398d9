"""Checks that the readers of raw public files share, and the writing of the lists made of them."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pela_vl.base.errors import UserError
from pela_vl.base.files import atomic_write

_WANTED = {str: "a text", int: "a whole number", list: "a list"}


def kind(value: Any) -> str:
    """What a JSON value is, in words for a message."""
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), repr(value))


@contextmanager
def reading(path: str | os.PathLike[str], if_absent: str, if_garbled: str, **options: Any) -> Iterator[TextIO]:
    """Open a UTF-8 file to be read within the block; options: of `open`.

    Raises `UserError` for a file that is absent (if_absent: what to do then), unreadable or no UTF-8 (if_garbled).
    """
    try:
        with open(path, **{"encoding": "utf-8"} | options) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {if_absent}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); {if_garbled}") from None


def typed(place: str, entry: dict[str, Any], name: str, wanted: type) -> Any:
    """Return entry[name]; raises `UserError` naming `place` and the field when it is absent or of another type."""
    if name not in entry:
        raise UserError(f"{place}.{name}: is missing; {_WANTED[wanted]} is wanted")
    value = entry[name]
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise UserError(f"{place}.{name}: wants {_WANTED[wanted]}, got {kind(value)}")
    return value


def list_entries(path: Path, content: Any, key: str, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, entry) of the objects in the list `key` of a JSON document; wanted: what the file should be, for messages."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path}: has no list '{key}' at its top; {wanted} is wanted")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {key}[{number}]: wants an object, got {kind(entry)}")
        yield f"{path}: {key}[{number}]", entry


def write_list(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a JSON list with an entry a line, whole or not at all."""
    with atomic_write(path, "w") as file:
        file.write("[\n")
        file.write(",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries))
        file.write("\n]\n")
