"""Long lists of text in flat buffers, which loader workers share with the process that starts them.

A list of Python strings is copied into every worker little by little, because reading an object changes its reference
count and thus writes to its memory page. Here all texts are the bytes of one tensor, which reading does not change.
Forked workers share its pages. For spawned workers torch moves it to shared memory.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import torch


class Texts(Sequence[str]):
    """An immutable list of strings: all their bytes, and where each ends."""

    def __init__(self, texts: Iterable[str]) -> None:
        content, ends = bytearray(), array("q", [0])
        for text in texts:
            content += text.encode("utf-8", "surrogatepass")  # JSON may hold half a surrogate pair
            ends.append(len(content))
        self._content = flat_buffer(content, torch.uint8)
        self._ends = flat_buffer(ends, torch.int64)

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
        start, end = self._ends[index : index + 2].tolist()
        return self._content[start:end].numpy().tobytes().decode("utf-8", "surrogatepass")


class TextLists(Sequence[list[str]]):
    """An immutable list of lists of strings."""

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        spans = array("q", [0])

        def flattened() -> Iterable[str]:
            for texts in lists:
                spans.append(spans[-1] + len(texts))
                yield from texts

        self.texts = Texts(flattened())
        self._spans = flat_buffer(spans, torch.int64)

    def __len__(self) -> int:
        return len(self._spans) - 1

    # elements are read one by one; slices are not supported
    def __getitem__(self, index: int) -> list[str]:  # type: ignore[override]
        index = _checked(index, len(self))
        return [self.texts[i] for i in self.span(index)]

    def span(self, index: int) -> range:
        """Where the texts of one list stand among all."""
        return range(*self._spans[index : index + 2].tolist())


def flat_buffer(content: bytearray | array, dtype: torch.dtype) -> torch.Tensor:
    """A new tensor [n] with the numbers of a buffer."""
    return torch.frombuffer(content, dtype=dtype).clone() if len(content) else torch.empty(0, dtype=dtype)


def _checked(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"no entry {index} in a list of {length}")
    return index % length
