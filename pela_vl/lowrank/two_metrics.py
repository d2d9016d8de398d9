"""Factorisation in two metrics: of a layer's inputs, and of what its outputs do to the features that count.

For W [O, I], inputs of covariance C = S S^T and an output metric G = L L^T (sensitivity.py), factors P = up @ down with the
bias b' = b + (W - P) mu change the features by E |f - f'|^2 ~ tr(G (W - P) C (W - P)^T) = ||L^T (W - P) S||^2. The truncated
SVD of L^T W S = A Sigma Q^T minimises it: up = L^-T A_R Sigma_R^(1/2), down = Sigma_R^(1/2) Q_R^T S^-1, and the error is the
discarded sum of sigma^2.

Shapes: O = output width, I = input width, R = rank, K = min(O, I).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pela_vl.lowrank.calibration import InputStatistics
from pela_vl.lowrank.factorize import factorize, singular_values
from pela_vl.lowrank.sensitivity import OutputMetric
from pela_vl.lowrank.whiten import Root, covariance_root, statistics_root

INPUT_SHRINKAGE, OUTPUT_SHRINKAGE = 0.01, 0.02
"""Shares of the two metrics that are replaced by a multiple of the identity with the same trace."""


class TwoMetricFactors(NamedTuple):
    """up [O, R] and down [R, I], fp64; spectrum [K], fp64: the predicted error is the sum of squares beyond R.

    rel_error: ||W - up @ down|| / ||W||.
    """

    up: Tensor
    down: Tensor
    spectrum: Tensor
    rel_error: float

    @property
    def predicted_error(self) -> float:
        """E |f - f'|^2 of the features that the output metric was made of, to first order."""
        return float(self.spectrum[self.up.shape[1] :].square().sum())


def metric_roots(statistics: InputStatistics, metric: OutputMetric, has_bias: bool) -> tuple[Root, Root]:
    """S and L of a layer, after shrinkage."""
    inputs = statistics_root(statistics, has_bias, INPUT_SHRINKAGE)
    return inputs, covariance_root(metric.matrix.to(inputs.matrix.device), OUTPUT_SHRINKAGE)


@torch.no_grad()
def factorize_two_metrics(weight: Tensor, rank: int, inputs: Root, outputs: Root) -> TwoMetricFactors:
    """The rank-R factors of weight [O, I] with the least predicted error of the features.

    Identity metrics give the plain SVD; of outputs alone, the whitened factors. Raises ValueError as `factorize` does.
    """
    exact = weight.detach().to(inputs.matrix.device, torch.float64)
    if not torch.isfinite(exact).all():
        raise ValueError("the weight holds NaN or infinity")
    factors = factorize(outputs.matrix.T @ exact @ inputs.matrix, rank)
    up, down = outputs.divide(factors.up.T).T.contiguous(), inputs.divide(factors.down).contiguous()
    norm = float(exact.norm())
    rel_error = float((exact - up @ down).norm()) / norm if norm else 0.0
    return TwoMetricFactors(up, down, factors.spectrum.double() * _unit(inputs, outputs), rel_error)


@torch.no_grad()
def two_metric_spectrum(weight: Tensor, inputs: Root, outputs: Root) -> Tensor:
    """Singular values [K] of L^T W S, fp64, descending."""
    exact = weight.detach().to(inputs.matrix.device, torch.float64)
    return singular_values(outputs.matrix.T @ exact @ inputs.matrix) * _unit(inputs, outputs)


def _unit(inputs: Root, outputs: Root) -> float:
    return (inputs.scale * outputs.scale) ** 0.5
