"""The layer that stands in for a Linear: two thin Linears, one after the other.

Shapes: N = any leading dimensions, I = input width, O = output width, R = rank.
"""

from typing import Any

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """y = up(down(x)), the product of two factors in place of a dense W [O, I] (paper eq. 1).

    State-dict names: `down.weight` [R, I], `up.weight` [O, R] and, with a bias, `up.bias` [O]. There is no `weight`:
    a module that reads its Linear's weight itself instead of calling the Linear cannot take this layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Initialise both factors as torch initialises a Linear.

        Args:
            in_features: input width I.
            out_features: output width O.
            rank: R in 1..min(I, O).
            bias: give `up` a bias [O].
            device: of the parameters; None: torch's default.
            dtype: of the parameters; None: torch's default.

        Raises:
            ValueError: If `rank` is out of range.
        """
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(f"rank {rank} is not in 1..{min(in_features, out_features)}")
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Map x [N, I] to [N, O]. The argument is called as a Linear's is."""
        return self.up(self.down(input))

    def dense_weight(self) -> Tensor:
        """The product up @ down [O, I], differentiable in both factors."""
        return self.up.weight @ self.down.weight

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"

    def __getattr__(self, name: str) -> Any:
        # Called only for names that do not exist. Code that reads .weight needs to know why it is missing.
        if name in ("weight", "bias"):
            raise AttributeError(
                f"LowRankLinear has no '{name}': the module around it reads its Linear's {name} directly, "
                "so that Linear has to stay dense (exclude it)"
            )
        return super().__getattr__(name)
