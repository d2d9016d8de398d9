"""Cutting one layer at a time: the measured error of the model's features beside the predicted one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pela_vl.lowrank.calibration import (
    Calibration,
    InputStatistics,
    calibration_items,
    eval_mode,
    first_input,
)
from pela_vl.lowrank.dense import weight_of
from pela_vl.lowrank.prefix import PrefixRuns
from pela_vl.lowrank.sensitivity import (
    Features,
    OutputMetric,
    Ticks,
    feature_list,
    feature_scales,
    model_features,
)
from pela_vl.lowrank.two_metrics import factorize_two_metrics, metric_roots

BATCHES = 8
"""Number of calibration items that the errors are measured on, evenly spaced."""


class LayerCut(NamedTuple):
    """Predicted and measured E |f - f'|^2 of the features f, and the layer's spectrum [K] in its input and output
    metrics.
    """

    predicted: float
    measured: float
    spectrum: Tensor

    @property
    def scale(self) -> float:
        """Measured over predicted, 1 where nothing is predicted."""
        return self.measured / self.predicted if self.predicted > 0 else 1.0


@torch.no_grad()
def cut_errors(
    model: nn.Module,
    plan: Mapping[str, int],
    statistics: Mapping[str, InputStatistics],
    metrics: Mapping[str, OutputMetric],
    calibration: Calibration,
    features: Features | None = None,
    progress: Ticks | None = None,
) -> dict[str, LayerCut]:
    """Measure the error of the features when one layer alone is replaced by its factors, for every layer of `plan`.

    The error is measured on at most BATCHES items. Blocks before the layer's block are not computed again
    (`PrefixRuns`).

    Args:
        model: the dense model; it runs in eval mode and is unchanged afterwards.
        plan: rank of each layer's factors by name.
        statistics: of the layers' inputs, by name.
        metrics: of the layers' outputs, by name.
        calibration: inputs one by one (`calibration_items`).
        features: the features whose error counts (`Features`); None: `model_features`.
        progress: called after each layer.

    Returns:
        Predicted and measured error by name, in plan order.

    Raises:
        PlanError: If `calibration` holds no separate items, or `features` returns no tensors.
    """
    items = calibration_items(calibration)
    items = items[:: -(-len(items) // BATCHES)]
    features = features or model_features
    cuts: dict[str, LayerCut] = {}
    with eval_mode(model):
        runs = PrefixRuns(model, list(plan), lambda model, item: feature_list(features(model, item)), items)
        scales = feature_scales(runs.outputs[0])
        samples = sum(len(parts[0]) for parts in runs.outputs)
        for number, (name, rank) in enumerate(plan.items()):
            change = _Change(model.get_submodule(name), rank, statistics[name], metrics[name])
            total = sum(
                _difference(runs.run(index, name, change), expected, scales)
                for index, expected in enumerate(runs.outputs)
            )
            cuts[name] = LayerCut(change.predicted, total / samples, change.spectrum)
            if progress is not None:
                progress(number + 1, len(plan), "measured errors")
    return cuts


class _Change:
    """Forward hook that turns a dense layer's output into that of its factors."""

    def __init__(self, linear: nn.Module, rank: int, statistics: InputStatistics, metric: OutputMetric) -> None:
        weight = weight_of(linear).detach()
        factors = factorize_two_metrics(weight, rank, *metric_roots(statistics, metric, linear.bias is not None))
        self.predicted, self.spectrum = factors.predicted_error, factors.spectrum
        left = factors.up @ factors.down - weight.to(factors.up)
        self.difference = left.to(weight)
        self.shift = -(left @ statistics.mean).to(weight) if linear.bias is not None else None

    def __call__(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        return output + F.linear(first_input(args, kwargs), self.difference, self.shift)


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor], scales: Sequence[float]) -> float:
    pairs = zip(found, expected, scales, strict=True)
    return sum(float((scale * (value - reference)).square().sum()) for value, reference, scale in pairs)
