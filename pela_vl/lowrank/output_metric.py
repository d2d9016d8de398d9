"""The metric of a layer's output: the mean of g g^T over samples, gathered from gradients g [N, O] of N rows."""

import torch
from torch import Tensor

ROWS, WIDE = 16, 512
"""Gradients a dimension that the metric of an output of WIDE dimensions or more is made of, at least; of more, several are added
up under random signs, which leaves the mean of their products as it is and saves most of the work on images of many tokens."""


class OutputMetric:
    """Sample count and sum of g g^T [O, O] in fp32, and the weights of the input tokens [N] of the layer's first call,
    per item.

    Rows are buffered until there are O of them, because adding a product of few rows costs more than forming it. Before that
    `mixed` of them are added up under random signs.

    Args:
        width: O.
        device: of the sums.
        expected: Number of items in all, for `mixed`; 1 adds up no rows unless a single item has enough.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu", expected: int = 1) -> None:
        self.count = 0
        self.items = 0
        self.rows = 0
        self.expected = expected
        self.weights: list[Tensor] = []
        self._moment = torch.zeros(width, width, device=device)
        self._unit = 0.0  # the squared scale of the sum, that of the first rows
        self._rows: list[Tensor] = []

    def add(self, gradient: Tensor, generator: torch.Generator | None = None) -> None:
        """Add gradients [..., O] of some tokens; generator: of the signs."""
        rows = gradient.detach().reshape(-1, gradient.shape[-1]).float()
        self.rows += len(rows)
        mixed = self.mixed
        if mixed > 1 and len(rows) >= mixed:
            signs = torch.randint(0, 2, (len(rows), 1), generator=generator, device=rows.device) * 2.0 - 1
            whole = len(rows) - len(rows) % mixed
            sums = (rows[:whole] * signs[:whole]).unflatten(0, (mixed, -1)).sum(0)
            rows = torch.cat([sums, rows[whole:]])
        self._rows.append(rows)
        if sum(len(rows) for rows in self._rows) >= len(self._moment):
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows = torch.cat(self._rows), []
        if not self._unit:  # so that the squares of small gradients stay inside fp32's range
            self._unit = float(rows.abs().max()) ** 2
        if self._unit:
            rows = rows / self._unit**0.5
            self._moment.addmm_(rows.T, rows)

    def sum(self) -> Tensor:
        """The sum of g g^T [O, O], fp64."""
        self._flush()
        return self._moment.double() * self._unit

    @property
    def mixed(self) -> int:
        """How many rows are added up before their product is formed, if the items to come are like those so far.

        Items differ in size, such as texts batched by length, so every item counts anew. The present one may have more to add.
        """
        if self.width < WIDE:
            return 1
        rows = self.rows * max(self.expected, self.items + 1) // (self.items + 1)
        return max(1, rows // (ROWS * self.width))

    @property
    def width(self) -> int:
        """O."""
        return len(self._moment)

    @property
    def matrix(self) -> Tensor:
        """G [O, O]."""
        return self.sum() / max(self.count, 1)
