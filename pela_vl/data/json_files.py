"""JSON files that users give: whole ones, and large ones element by element, whose memory is that of one element.

ijson reads large files too. It refuses what downloads have and the builder must count instead: bytes that are no UTF-8, halves
of surrogate pairs, byte order marks, NaN.
"""

import json
import os
from collections.abc import Iterator
from typing import IO, Any

from pela_vl.base.errors import UserError
from pela_vl.data.builders import how_to_build
from pela_vl.data.remote import content

_PIECE = 1 << 20  # characters
_LARGEST = 1 << 26  # characters of one element; a longer one counts as malformed
_BLANKS = " \t\r\n"
_AFTER = frozenset(_BLANKS + ",:]}")  # what ends a value


def read_json(path: str | os.PathLike[str], if_absent: str | None = None, if_garbled: str = "download it again") -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark; the file may be at an address.

    Raises `UserError`, one line, for a file that is absent, unreadable or malformed.

    Args:
        path: the file.
        if_absent: what to do when it is absent; None says which script builds it.
        if_garbled: what to do when it is malformed.
    """
    name = os.fspath(path)
    try:
        return json.loads(content(path).decode("utf-8-sig"))
    except FileNotFoundError:
        advice = if_absent or how_to_build(name).removeprefix("; ") or "complete the download"
        raise UserError(f"{name}: no such file; {advice}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}; {if_garbled}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{name}: {place}: malformed JSON: {error.msg}; {if_garbled}") from None
    except RecursionError:
        raise UserError(f"{name}: malformed JSON: nested too deeply; {if_garbled}") from None


def json_items(path: str | os.PathLike[str]) -> Iterator[tuple[str | None, Any]]:
    """Yield the entries at the top level of a JSON file, in order.

    Of a list: (None, element) for each. Of an object: (key, element) for each element of an entry that is a list, and
    (key, value) of other entries. Bytes that are not UTF-8 become lone surrogates.

    Raises:
        UserError: If the file cannot be read or is malformed.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from _Scanner(file, name).document()
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}") from None


class _Scanner:
    def __init__(self, file: IO[str], name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at, self.before, self.ended = "", 0, 0, False
        self.decode = json.JSONDecoder().raw_decode

    def document(self) -> Iterator[tuple[str | None, Any]]:
        opening = self.peek()
        if opening == "[":
            yield from ((None, element) for element in self.elements())
        elif opening == "{":
            yield from self.entries()
        else:
            self.fail("wants a list or an object")
        if self.peek():
            self.fail("something follows the end")

    def entries(self) -> Iterator[tuple[str, Any]]:
        self.take("{")
        while self.peek() != "}":
            key = self.value()
            if not isinstance(key, str):
                self.fail("wants a key")
            self.take(":")
            if self.peek() == "[":
                yield from ((key, element) for element in self.elements())
            else:
                yield key, self.value()
            if self.peek() != "}":
                self.take(",")
        self.take("}")

    def elements(self) -> Iterator[Any]:
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.take(",")
        self.take("]")

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except (json.JSONDecodeError, RecursionError) as error:
                # the element may continue in the part not read yet
                if self.ended or len(self.text) - self.at > _LARGEST:
                    self.fail(error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply")
            else:
                # a number may continue in the part not read yet, even after a letter: 12, 12.5, 12.5e3
                if self.text[end : end + 1] in _AFTER or self.ended or len(self.text) - self.at > _LARGEST:
                    self.at = end
                    return value
            self.more(len(self.text) - self.at)

    def peek(self) -> str:
        """The next character that is not whitespace; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANKS:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more(0)

    def take(self, character: str) -> None:
        found = self.peek()
        if found != character:
            self.fail(f"wants {character!r}, found {found!r}" if found else f"ends where {character!r} should come")
        self.at += 1

    def more(self, at_least: int) -> None:
        piece = self.file.read(max(_PIECE, at_least))
        self.before += self.at
        self.text, self.at, self.ended = self.text[self.at :] + piece, 0, not piece

    def fail(self, reason: str) -> None:
        raise UserError(f"{self.name}: malformed JSON near character {self.before + self.at}: {reason}") from None
