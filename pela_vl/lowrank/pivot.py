"""Pivoted factors: a product of rank R stored in R (I + O - R) numbers instead of R (I + O), with as many
multiplications.

R rows of a matrix of rank R span all its rows: up @ down = P [1; A] B. B [R, I] holds R of the rows, A [O - R, R]
expresses the other rows by them, and P is a permutation. So y = P [z; A z] with z = B x. The R rows are chosen by QR
decomposition with column pivoting of the transpose, which keeps the entries of A small.

Shapes: N = any leading dimensions, I = input width, O = output width, R = rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.lowrank.layer import LowRankLinear

TOLERANCE = 1e-5
"""Largest allowed relative error of the product in fp32; a layer above it keeps plain factors."""
CONDITION = 1e4
"""Largest allowed entry of A."""


class PivotedLinear(nn.Module):
    """y = [z, rest(z)] in the order of the outputs, + bias, with z = down(x).

    State-dict names: `down.weight` [R, I], `rest.weight` [O - R, R], `order` [O] (where each output stands in [z, rest(z)])
    and, with a bias, `bias` [O].
    """

    order: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the layer with torch's Linear initialisation and the outputs in order.

        Args:
            in_features: input width I.
            out_features: output width O.
            rank: R in 1..min(I, O - 1).
            bias: add a bias [O], initially zero.
            device: of the parameters; None: torch's default.
            dtype: of the parameters; None: torch's default.

        Raises:
            ValueError: If `rank` is out of range.
        """
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features - 1):
            raise ValueError(f"rank {rank} is not in 1..{min(in_features, out_features - 1)}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.rest = nn.Linear(rank, out_features - rank, bias=False, device=device, dtype=dtype)
        self.register_buffer("order", torch.arange(out_features, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """Map x [N, I] to [N, O]."""
        return self.expand(self.down(input))

    def expand(self, rows: Tensor) -> Tensor:
        """All outputs [N, O] of the R outputs [N, R] that `down` gives."""
        out = torch.cat([rows, self.rest(rows)], dim=-1).index_select(-1, self.order)
        return out if self.bias is None else out + self.bias

    def dense_weight(self) -> Tensor:
        """The product [O, I]."""
        return torch.cat([self.down.weight, self.rest.weight @ self.down.weight]).index_select(0, self.order)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


@torch.no_grad()
def pivot_layer(layer: LowRankLinear) -> PivotedLinear | None:
    """The pivoted form of a LowRankLinear, or None where it saves nothing or is not exact enough.

    Exact enough: the relative Frobenius error of the product computed in fp32 is at most TOLERANCE, and no entry of A
    exceeds CONDITION.
    """
    up, down = layer.up.weight.double(), layer.down.weight.double()
    outputs, rank = up.shape
    if rank >= outputs:
        return None
    # down^T = Q T, so that up T^T has rows of the same inner products as the product's.
    triangle = torch.linalg.qr(down.T, mode="r").R
    chosen = pivot_rows(up @ triangle.T, rank)
    if chosen is None:
        return None
    others = torch.ones(outputs, dtype=torch.bool, device=up.device)
    others[chosen] = False
    rest = torch.linalg.solve(up[chosen].T, up[others].T).T  # A up[chosen] = up[others]
    basis = up[chosen] @ down
    if not torch.isfinite(rest).all() or rest.abs().max() > CONDITION:
        return None
    single = torch.promote_types(layer.up.weight.dtype, torch.float32)
    product, target = rest.to(single) @ basis.to(single), up[others] @ down
    error = (product.double() - target).norm().square() + (basis.to(single).double() - basis).norm().square()
    if float(error.sqrt()) > TOLERANCE * float((up @ down).norm()):
        return None
    weight = layer.up.weight
    form = PivotedLinear(
        layer.in_features, layer.out_features, rank, layer.up.bias is not None, weight.device, weight.dtype
    )
    form.down.weight = nn.Parameter(basis.to(weight), requires_grad=weight.requires_grad)
    form.rest.weight = nn.Parameter(rest.to(weight), requires_grad=weight.requires_grad)
    form.bias = layer.up.bias
    order = torch.empty(outputs, dtype=torch.int64, device=up.device)
    order[chosen] = torch.arange(rank, device=up.device)
    order[others] = torch.arange(rank, outputs, device=up.device)
    form.order = order
    for key, value in vars(layer).items():  # data that was set on the layer
        if key not in vars(form):
            setattr(form, key, value)
    return form.train(layer.training)


def pivot_rows(matrix: Tensor, rank: int) -> Tensor | None:
    """Indices [R] of the rows of a matrix [O, K] that a QR decomposition with column pivoting of its transpose takes first.

    None where the matrix has not that rank.
    """
    left = matrix.clone()  # residual of the rows after projection onto those taken
    first = left.norm(dim=1).max()
    taken: list[Tensor] = []
    open_rows = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    directions = matrix.new_zeros(rank, matrix.shape[1])
    for step in range(rank):
        norms = torch.where(open_rows, left.square().sum(1), -1.0)
        row = norms.argmax()
        if not norms[row] > (1e-12 * first) ** 2:
            return None
        direction = F.normalize(left[row], dim=0)
        direction = direction - directions[:step].T @ (directions[:step] @ direction)  # once more, against rounding
        directions[step] = direction = F.normalize(direction, dim=0)
        left.addr_(left @ direction, direction, alpha=-1)
        open_rows[row] = False
        taken.append(row)
    return torch.stack(taken)


def pivoted_layers(model: nn.Module) -> dict[str, PivotedLinear]:
    """The PivotedLinears of `model` by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PivotedLinear)}
