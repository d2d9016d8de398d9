"""Long lists of text in flat buffers, which the workers of a loader share with the process that starts them.

A list of Python strings is copied into every worker little by little: reading an object counts a reference in it, and that
writes to its memory page. Here all texts are the bytes of one array, which reading leaves as it is. Workers that are forked
share its pages; workers that are started anew receive the array through torch's shared memory.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import torch


class SharedArrays:
    """A base for objects of numpy arrays: pickled for a worker, their buffers go through torch's shared memory."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


class Texts(SharedArrays, Sequence[str]):
    """An unchangeable list of strings: the bytes of all, and where each ends."""

    def __init__(self, texts: Iterable[str]) -> None:
        content, ends = bytearray(), array("q", [0])
        for text in texts:
            content += text.encode("utf-8", "surrogatepass")  # JSON may hold half a surrogate pair
            ends.append(len(content))
        self._content = np.frombuffer(content, dtype=np.uint8).copy()
        self._ends = np.frombuffer(ends, dtype=np.int64).copy()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = _checked(index, len(self))
        return self._content[self._ends[index] : self._ends[index + 1]].tobytes().decode("utf-8", "surrogatepass")


class TextLists(SharedArrays, Sequence[list[str]]):
    """An unchangeable list of lists of strings. spans: int64 [n + 1], where the texts of each list begin among all."""

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        spans = array("q", [0])

        def flattened() -> Iterable[str]:
            for texts in lists:
                spans.append(spans[-1] + len(texts))
                yield from texts

        self.texts = Texts(flattened())
        self.spans = np.frombuffer(spans, dtype=np.int64).copy()

    def __len__(self) -> int:
        return len(self.spans) - 1

    def __getitem__(self, index: int) -> list[str]:
        index = _checked(index, len(self))
        return [self.texts[i] for i in range(self.spans[index], self.spans[index + 1])]


def _checked(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"no entry {index} in a list of {length}")
    return index % length
