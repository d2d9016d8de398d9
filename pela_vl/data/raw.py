"""Checks shared by the readers of raw public files, and writing of lists."""

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
    """Name of a JSON value's type, for a message."""
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), repr(value))


@contextmanager
def reading(path: str | os.PathLike[str], if_absent: str, if_garbled: str, **options: Any) -> Iterator[TextIO]:
    """Open a UTF-8 file for reading within the block.

    Args:
        path: of the file.
        if_absent: end of the error for an absent file: what to do.
        if_garbled: end of the error for a file that is not UTF-8: what to do.
        options: further arguments of `open`.

    Raises:
        UserError: If the file is absent, unreadable or not UTF-8.
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
    """Return entry[name] after a check of its type.

    Args:
        place: where the entry is, for the error.
        entry: a JSON object.
        name: the field.
        wanted: str, int or list. A bool is no int.

    Raises:
        UserError: Naming place and field, when it is absent or of another type.
    """
    if name not in entry:
        raise UserError(f"{place}.{name}: is missing; {_WANTED[wanted]} is wanted")
    value = entry[name]
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise UserError(f"{place}.{name}: wants {_WANTED[wanted]}, got {kind(value)}")
    return value


def list_entries(path: Path, content: Any, key: str, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, entry) of each object in the list `key` at the top of a JSON document.

    Args:
        path: of the file, for errors.
        content: the document.
        key: name of the list.
        wanted: what the file should be, for errors.

    Raises:
        UserError: If there is no such list, or an element is no object.
    """
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path}: has no list '{key}' at its top; {wanted} is wanted")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {key}[{number}]: wants an object, got {kind(entry)}")
        yield f"{path}: {key}[{number}]", entry


def write_list(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a JSON list with one entry per line, completely or not at all."""
    with atomic_write(path, "w") as file:
        file.write("[\n")
        file.write(",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries))
        file.write("\n]\n")
