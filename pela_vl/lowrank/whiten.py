"""Activation-aware factorisation: factors with the least error of the layer's outputs instead of its weights.

For W [O, I] and inputs x of mean mu and covariance C = S S^T, a product P = up @ down with the bias b' = b + (W - P) mu
has the output error E |(W - P)(x - mu)|^2 = ||(W - P) S||^2. The truncated SVD of W S = A Sigma Q^T minimises it: up =
A_R Sigma_R^(1/2) and down = Sigma_R^(1/2) Q_R^T S^-1. The error is the sum of the discarded sigma^2.

Shapes: O = output width, I = input width, R = rank, K = min(O, I).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pela_vl.lowrank.calibration import InputStatistics
from pela_vl.lowrank.factorize import factorize, singular_values

SHRINKAGE = 0.01
"""Fraction of the covariance replaced by a multiple of the identity with the same trace.

A few hundred samples say little about the directions of least variance. Factors that ignore these would err on new inputs.
"""
_SINGULAR = 1e-6  # of the largest: below, a root's inverse is rounding noise


class WhitenedFactors(NamedTuple):
    """W ~ up @ down on the calibration inputs; up [O, R] and down [R, I] in the weight's dtype and on its device.

    Attributes:
        bias_shift: [O] fp64, to be added to the bias; None for a layer without bias.
        spectrum: singular values [K] of W S, fp32. The squared output error is the sum of squares beyond R.
        output_error: root of the squared output error relative to the outputs' variance.
        rel_error: ||W - up @ down|| / ||W||.
    """

    up: Tensor
    down: Tensor
    bias_shift: Tensor | None
    spectrum: Tensor
    output_error: float
    rel_error: float


class Root(NamedTuple):
    """S [I, I] with C = scale S S^T, and the inverse of S or the means to solve by it. The mean of C's diagonal over
    `scale` is 1.
    """

    scale: float
    matrix: Tensor
    inverse: Tensor | None  # None: the matrix is lower triangular, and solving is better than inverting

    def divide(self, rows: Tensor) -> Tensor:
        """rows [R, I] @ S^-1 (the pseudo-inverse where S has none)."""
        if self.inverse is not None:
            return rows @ self.inverse
        return torch.linalg.solve_triangular(self.matrix, rows, upper=False, left=False)


def covariance_root(covariance: Tensor, shrinkage: float = SHRINKAGE) -> Root:
    """The root of a covariance [I, I], fp64, after shrinkage: by Cholesky, or by eigenvectors where C is singular.

    Raises:
        ValueError: If `shrinkage` is not in [0, 1).
    """
    if not 0 <= shrinkage < 1:
        raise ValueError(f"shrinkage {shrinkage} is not in [0, 1)")
    width = len(covariance)
    identity = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    scale = float(covariance.diagonal().mean())
    if scale <= 0:  # the inputs are constant: the bias alone makes the outputs exact
        return Root(0.0, identity, identity)
    # Unit scale, so that white inputs of any variance give the factors of a plain SVD.
    shrunk = (1 - shrinkage) / scale * covariance + shrinkage * identity
    lower, failed = torch.linalg.cholesky_ex(shrunk)
    pivots = lower.diagonal()
    if not failed and pivots.min() > _SINGULAR * pivots.max():
        return Root(scale, lower, None)
    values, vectors = torch.linalg.eigh(shrunk)
    roots = values.clamp_min(0).sqrt()
    present = roots > _SINGULAR * roots.max()
    roots = torch.where(present, roots, 0)
    inverse = torch.where(present, 1 / roots, 0)
    return Root(scale, vectors * roots, inverse[:, None] * vectors.T)


@torch.no_grad()
def factorize_whitened(
    weight: Tensor, rank: int, statistics: InputStatistics, has_bias: bool, shrinkage: float = SHRINKAGE
) -> WhitenedFactors:
    """The rank-R factors of a weight with the least squared output error on the calibration inputs, computed in fp64.

    White inputs, and constant ones, give the factors of a plain SVD.

    Args:
        weight: [O, I].
        rank: R in 1..min(O, I).
        statistics: of the layer's inputs.
        has_bias: whether the layer has a bias, which can correct the mean. Without one, E x x^T takes the place of C.
        shrinkage: fraction of the covariance replaced by a multiple of the identity, in [0, 1).

    Raises:
        ValueError: If the weight is not finite, or `rank` or `shrinkage` is out of range.
    """
    root = statistics_root(statistics, has_bias, shrinkage)
    exact = weight.detach().to(root.matrix.device, torch.float64)
    if not torch.isfinite(exact).all():
        raise ValueError("the weight holds NaN or infinity")
    factors = factorize(exact @ root.matrix, rank)
    up, down = (part.to(weight.device, weight.dtype) for part in (factors.up, root.divide(factors.down)))
    # From the rounded factors, so that the bias corrects the rounding too.
    left = exact - up.to(exact) @ down.to(exact)
    norm = float(exact.norm())
    return WhitenedFactors(
        up.contiguous(),
        down.contiguous(),
        left @ statistics.mean if has_bias else None,
        factors.spectrum * root.scale**0.5,
        factors.rel_error,
        float(left.norm()) / norm if norm else 0.0,
    )


@torch.no_grad()
def whitened_spectrum(
    weight: Tensor, statistics: InputStatistics, has_bias: bool, shrinkage: float = SHRINKAGE
) -> Tensor:
    """Singular values [K] of W S, fp64, descending.

    Args:
        weight: W [O, I].
        statistics: of the layer's inputs.
        has_bias: as in `factorize_whitened`.
        shrinkage: as in `factorize_whitened`.

    Raises:
        ValueError: If `shrinkage` is not in [0, 1).
    """
    root = statistics_root(statistics, has_bias, shrinkage)
    return singular_values(weight.to(root.matrix.device, torch.float64) @ root.matrix) * root.scale**0.5


def statistics_root(statistics: InputStatistics, has_bias: bool, shrinkage: float) -> Root:
    """The root of the matrix that a layer is whitened by.

    Args:
        statistics: of the layer's inputs.
        has_bias: the covariance counts with a bias, E x x^T without.
        shrinkage: as in `covariance_root`.

    Raises:
        ValueError: If `shrinkage` is not in [0, 1).
    """
    return covariance_root(statistics.covariance if has_bias else statistics.uncentred, shrinkage)
