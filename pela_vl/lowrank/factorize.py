"""Truncated singular value decomposition of one matrix into two balanced factors.

Shapes: O = output width, I = input width, R = rank, K = min(O, I).
"""

from typing import NamedTuple

import torch
from torch import Tensor

# The Gram matrix squares the singular values: in fp64, one at 1e-6 of the largest (1e-12 squared) still
# stands well above the rounding at 1e-16.
_GRAM_FLOOR = 1e-6
# Below this relative error the Gram spectrum's tail is rounding noise, so the residual is formed instead.
_TAIL_FLOOR = 1e-5

_GRAM_BLOCK = 192  # columns; a narrower product would be slower than the half it saves


class Factors(NamedTuple):
    """W ~ up @ down, with what was left out.

    `up` [O, R] and `down` [R, I] in the weight's dtype and device; `spectrum` [K] all singular values, descending,
    fp32; `rel_error` = ||W - up @ down|| / ||W|| (Frobenius; 0 for a zero matrix), before rounding to a half dtype.
    """

    up: Tensor
    down: Tensor
    spectrum: Tensor
    rel_error: float


@torch.no_grad()
def factorize(weight: Tensor, rank: int, method: str = "auto") -> Factors:
    """Best rank-R approximation of a matrix (Eckart-Young), with sqrt(sigma) in each factor.

    Works in fp64 on the weight's device (fp32 where the device has no fp64). The largest entry of every column of `up`
    is positive, so equal weights give equal factors. A kept singular value of zero gives a zero column and a zero row,
    which gradients cannot revive.

    Args:
        weight: [O, I], of any floating dtype.
        rank: R in 1..min(O, I).
        method: "svd" (economy SVD), "gram" (eigenvectors of the smaller Gram matrix: several times faster, accurate as
            long as the kept singular values are not tiny) or "auto" (gram, and svd when the smallest kept value is
            below 1e-6 of the largest).

    Raises:
        ValueError: If `weight` is no finite floating-point matrix with values, `rank` is out of range, or `method`
            unknown.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"expected a floating-point matrix, got {weight.dtype} of shape {tuple(weight.shape)}")
    if weight.device.type == "meta":
        raise ValueError("the weight is on the meta device and has no values to factorise")
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank {rank} is not in 1..{min(weight.shape)}")
    if method not in ("auto", "svd", "gram"):
        raise ValueError(f"method must be auto, svd or gram, not {method!r}")
    has_fp64 = weight.device.type != "mps"
    working = torch.float64 if has_fp64 else torch.float32
    low, high = weight.detach().aminmax()  # NaN if there is one
    scale = torch.maximum(-low, high).to(working)
    if not torch.isfinite(scale):
        raise ValueError("the weight holds NaN or infinity")
    if scale == 0:
        up, down = weight.new_zeros(weight.shape[0], rank), weight.new_zeros(rank, weight.shape[1])
        return Factors(up, down, torch.zeros(min(weight.shape), device=weight.device), 0.0)
    # Unit scale keeps the squares of very small or very large weights inside the floating range.
    matrix = weight.detach().to(working, copy=True).div_(scale)
    wide = matrix.shape[0] <= matrix.shape[1]
    tall = matrix.T if wide else matrix  # [max(O, I), K]
    decomposed = None
    if method == "gram" or (method == "auto" and has_fp64):
        decomposed = _gram(tall, rank, _GRAM_FLOOR if method == "auto" else 0.0)
    long, short, spectrum, rel_error = decomposed or _svd(tall, rank)
    up, down = (short.T, long.T) if wide else (long, short)
    sign = up.gather(0, up.abs().argmax(0, keepdim=True)).sign()  # [1, R]; 0 for a zero column
    root = scale.sqrt()
    return Factors(
        (up * (sign * root)).to(weight.dtype).contiguous(),
        (down * (sign.T * root)).to(weight.dtype).contiguous(),
        (spectrum * scale).float(),
        rel_error,
    )


@torch.no_grad()
def singular_values(matrix: Tensor) -> Tensor:
    """Singular values [K] of a matrix [O, I], descending, from the smaller Gram matrix.

    In fp64, values below 1e-8 of the largest are rounding noise.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    scale = matrix.abs().max()
    if scale == 0:
        return matrix.new_zeros(min(matrix.shape))
    unit = matrix / scale
    gram = unit @ unit.T if wide else unit.T @ unit
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt() * scale


def _svd(tall: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Factors long [L, R], short [R, K] of tall [L, K] by economy SVD, then the spectrum [K] and the relative error."""
    u, s, vh = torch.linalg.svd(tall, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank], s, float(s[rank:].norm() / s.norm())


def _gram(tall: Tensor, rank: int, floor: float) -> tuple[Tensor, Tensor, Tensor, float] | None:
    """As `_svd`, from the eigenvectors V of tall^T tall; None when a kept singular value is below `floor` of the first.

    The product is tall V V^T, a projection: an error in an eigenvalue does not enter it. The kept singular values are
    measured as the norms of tall V's columns, which also balances the two factors exactly.
    """
    eigenvalues, vectors = torch.linalg.eigh(_lower_gram(tall))  # ascending
    spectrum = eigenvalues.flip(0).clamp_min(0).sqrt()
    if spectrum[rank - 1] < floor * spectrum[0]:
        return None
    kept = vectors[:, -rank:].flip(1)  # [K, R]
    long = tall @ kept
    norms = long.norm(dim=0)
    root = norms.sqrt()
    scaled = long / root.where(root > 0, torch.ones_like(root))
    short = kept.T * root[:, None]
    rel_error = float(spectrum[rank:].norm() / spectrum.norm())
    if rel_error < _TAIL_FLOOR and rank < len(spectrum):
        rel_error = float((tall - long @ kept.T).norm() / tall.norm())
    return scaled, short, spectrum, rel_error


def _lower_gram(tall: Tensor) -> Tensor:
    """tall^T tall [K, K] in its lower triangle, which is all that eigh reads; blocks wholly above it are left 0."""
    width = tall.shape[1]
    gram = tall.new_zeros(width, width)
    for start in range(0, width, _GRAM_BLOCK):
        stop = min(start + _GRAM_BLOCK, width)
        gram[start:, start:stop] = tall[:, start:].T @ tall[:, start:stop]
    return gram
