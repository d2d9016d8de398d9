"""Reads pickles of plain data (lists, dicts, text, numbers) without running code.

A pickle is a program for a small stack machine. Every instruction is checked first. A file with an instruction that
could import a name or call something is refused.
"""

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

from pela_vl.base.errors import UserError

_PLAIN = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK DUP "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING BINBYTES BINBYTES8 SHORT_BINBYTES "
    "UNICODE BINUNICODE BINUNICODE8 SHORT_BINUNICODE "
    "EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE".split()
)
_IMPORTS = ("GLOBAL", "INST")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def read_plain_pickle(path: str | os.PathLike[str]) -> Any:
    """The content of a pickle of plain data, of any protocol. Byte strings of Python 2 are decoded as latin-1 (ASCII in
    protocol 0).

    Raises:
        UserError: If the file cannot be read, is damaged, or holds anything else (NumPy's scalars too).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    _check(path, data)
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: damaged pickle ({type(error).__name__}: {error}); download it again") from None


def _check(path: str | os.PathLike[str], data: bytes) -> None:
    """Refuse instructions that are not plain, and memo numbers for which the unpickler would reserve memory without
    bound.
    """
    try:
        for count, (instruction, argument, position) in enumerate(pickletools.genops(data)):
            name = instruction.name
            if name not in _PLAIN:
                what = f"the name {str(argument).replace(' ', '.')}" if name in _IMPORTS else f"the instruction {name}"
                raise UserError(
                    f"{path}: holds {what} at byte {position}, which is no plain data; it is not loaded, "
                    "as it could run code: use the official file"
                )
            # a memo number is one more than the last at each store, so it cannot exceed the instructions so far
            if name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
                raise UserError(f"{path}: damaged pickle (memo number {argument} at byte {position})")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: no pickle or a damaged one ({error}); download it again") from None
