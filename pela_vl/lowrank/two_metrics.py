"""Factorisation in two metrics: one of a layer's inputs, one of its outputs' effect on the model's features.

For W [O, I], inputs of covariance C = S S^T and an output metric G = L L^T (sensitivity.py), factors P = up @ down with
the bias b' = b + (W - P) mu change the features by E |f - f'|^2 ~ tr(G (W - P) C (W - P)^T) = ||L^T (W - P) S||^2. The
truncated SVD of L^T W S = A Sigma Q^T minimises it: up = L^-T A_R Sigma_R^(1/2), down = Sigma_R^(1/2) Q_R^T S^-1. The
error is the sum of the discarded sigma^2.

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
"""Fractions of the two metrics that are replaced by a multiple of the identity with the same trace."""


class TwoMetricFactors(NamedTuple):
    """Factors up [O, R] and down [R, I] in fp64.

    Attributes:
        spectrum: singular values [K] of L^T W S, fp64. The predicted error is the sum of squares beyond R.
        rel_error: ||W - up @ down|| / ||W||.
    """

    up: Tensor
    down: Tensor
    spectrum: Tensor
    rel_error: float

    @property
    def predicted_error(self) -> float:
        """E |f - f'|^2 of the features behind the output metric, to first order."""
        return float(self.spectrum[self.up.shape[1] :].square().sum())


def metric_roots(statistics: InputStatistics, metric: OutputMetric, has_bias: bool) -> tuple[Root, Root]:
    """The roots S and L of a layer's two metrics, after shrinkage.

    Args:
        statistics: of the layer's inputs.
        metric: of the layer's outputs.
        has_bias: whether the layer has a bias. With one, S is the covariance's root; without, that of E x x^T.
    """
    inputs = statistics_root(statistics, has_bias, INPUT_SHRINKAGE)
    return inputs, covariance_root(metric.matrix.to(inputs.matrix.device), OUTPUT_SHRINKAGE)


@torch.no_grad()
def factorize_two_metrics(weight: Tensor, rank: int, inputs: Root, outputs: Root) -> TwoMetricFactors:
    """The rank-R factors of a weight with the least predicted error of the features.

    Identity metrics give the plain SVD. An identity output metric gives the whitened factors.

    Args:
        weight: [O, I].
        rank: R in 1..min(O, I).
        inputs: S, root of the input covariance.
        outputs: L, root of the output metric.

    Raises:
        ValueError: If the weight is not finite or `rank` is out of range.
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
    """Singular values [K] of L^T W S, fp64, descending.

    Args:
        weight: W [O, I].
        inputs: S, root of the input covariance.
        outputs: L, root of the output metric.
    """
    exact = weight.detach().to(inputs.matrix.device, torch.float64)
    return singular_values(outputs.matrix.T @ exact @ inputs.matrix) * _unit(inputs, outputs)


def _unit(inputs: Root, outputs: Root) -> float:
    return (inputs.scale * outputs.scale) ** 0.5
