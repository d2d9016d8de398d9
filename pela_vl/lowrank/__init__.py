"""Low-rank replacement of Linear layers. Needs torch alone and knows no model by name."""

from pela_vl.lowrank.allocate import allocate_ranks
from pela_vl.lowrank.apply import (
    LayerReport,
    apply_plan,
    low_rank_layers,
    merge_dense,
    pivot,
    rank_plan,
)
from pela_vl.lowrank.calibration import Calibration, InputStatistics, calibrate, collect_statistics
from pela_vl.lowrank.checks import PlanError
from pela_vl.lowrank.effect import LayerCut, cut_errors
from pela_vl.lowrank.factorize import Factors, factorize
from pela_vl.lowrank.layer import LowRankLinear
from pela_vl.lowrank.output_metric import OutputMetric
from pela_vl.lowrank.pivot import PivotedLinear, pivot_layer, pivoted_layers
from pela_vl.lowrank.plan import plan_ranks, rank_for
from pela_vl.lowrank.recipe import Recipe, compress, make_recipe
from pela_vl.lowrank.sensitivity import Features, measure_metrics, model_features
from pela_vl.lowrank.storage import load, save
from pela_vl.lowrank.two_metrics import TwoMetricFactors, factorize_two_metrics, metric_roots, two_metric_spectrum
from pela_vl.lowrank.whiten import WhitenedFactors, covariance_root, factorize_whitened

__all__ = [
    "Calibration",
    "Factors",
    "Features",
    "InputStatistics",
    "LayerCut",
    "LayerReport",
    "LowRankLinear",
    "OutputMetric",
    "PivotedLinear",
    "PlanError",
    "Recipe",
    "TwoMetricFactors",
    "WhitenedFactors",
    "allocate_ranks",
    "apply_plan",
    "calibrate",
    "collect_statistics",
    "compress",
    "covariance_root",
    "cut_errors",
    "factorize",
    "factorize_two_metrics",
    "factorize_whitened",
    "load",
    "low_rank_layers",
    "make_recipe",
    "measure_metrics",
    "merge_dense",
    "metric_roots",
    "model_features",
    "pivot",
    "pivot_layer",
    "pivoted_layers",
    "plan_ranks",
    "rank_for",
    "rank_plan",
    "save",
    "two_metric_spectrum",
]
