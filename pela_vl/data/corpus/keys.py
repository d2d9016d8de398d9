"""A set of 64-bit numbers that only grows: eight bytes a number in memory and in a file that is appended to.

A database's tree of keys that come in no order is written over and over as it grows; here the disk sees each number once, and
looking one up touches memory alone. Two of n texts get the same number with a chance of n**2 / 2**65: 2e-5 for 28 million.
"""

import hashlib
import os
from array import array
from bisect import bisect_left
from pathlib import Path

import numpy as np

from pela_vl.base.errors import UserError

_PART_BITS = 6  # the numbers lie in 64 sorted parts by their first bits, so that merging copies one of them at a time
_RECENT = 1 << 18  # numbers that wait in a Python set until they are merged: some 20 MiB


def key(kind: str, *parts: object) -> int:
    """The number that stands for some values."""
    text = "\0".join((kind, *map(str, parts)))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


class KeySet:
    """The numbers of a file as of the last call of `save` that was committed, and those added since."""

    def __init__(self, path: Path, count: int) -> None:
        """count: how many numbers were committed; what the file has beyond them is cut off.

        Raises `UserError` for a file that holds fewer.
        """
        self.path, self.count = path, count
        self._parts = [array("Q") for _ in range(1 << _PART_BITS)]
        self._recent: set[int] = set()
        self._unsaved = array("Q")
        try:
            path.touch()
            if path.stat().st_size < 8 * count:
                raise UserError(f"{path}: has lost content since it was written; remove that folder and begin again")
            os.truncate(path, 8 * count)
            with open(path, "rb") as file:
                while piece := file.read(8 * _RECENT):
                    self._merge(np.frombuffer(piece, dtype="<u8").astype(np.uint64))
        except OSError as error:
            raise self._unusable(error) from None

    def __len__(self) -> int:
        return self.count + len(self._unsaved)

    def __contains__(self, number: int) -> bool:
        if number in self._recent:
            return True
        part = self._parts[number >> (64 - _PART_BITS)]
        at = bisect_left(part, number)
        return at < len(part) and part[at] == number

    def add(self, number: int) -> bool:
        """Add a number; returns whether it was absent."""
        if number in self:
            return False
        self._recent.add(number)
        self._unsaved.append(number)
        if len(self._recent) >= _RECENT:
            self._merge(np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent)))
            self._recent.clear()
        return True

    def save(self) -> int:
        """Bring the numbers to the disk; returns their count, to be committed next."""
        if self._unsaved:
            try:
                with open(self.path, "ab") as file:
                    file.write(np.frombuffer(self._unsaved, dtype=np.uint64).astype("<u8").tobytes())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._unusable(error) from None
            self.count += len(self._unsaved)
            self._unsaved = array("Q")
        return self.count

    def _merge(self, numbers: np.ndarray) -> None:
        numbers = np.sort(numbers)
        firsts = np.arange(len(self._parts), dtype=np.uint64) << np.uint64(64 - _PART_BITS)
        for place, new in enumerate(np.split(numbers, np.searchsorted(numbers, firsts)[1:])):
            if len(new):
                old = np.frombuffer(self._parts[place], dtype=np.uint64)
                merged = np.sort(np.concatenate([old, new]), kind="stable")  # merges the two runs
                self._parts[place] = array("Q")
                self._parts[place].frombytes(merged.view(np.uint8).data)

    def _unusable(self, error: OSError) -> UserError:
        reason = error.strerror or error
        return UserError(f"{self.path}: cannot be written ({reason}); mend that (a full disk?) and run again to go on")
