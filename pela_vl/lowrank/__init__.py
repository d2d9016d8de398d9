"""Low-rank replacement of Linear layers. Needs torch alone and knows no model by name."""

from pela_vl.lowrank.allocate import allocate_ranks
from pela_vl.lowrank.apply import (
    LayerReport,
    apply_plan,
    low_rank_layers,
    merge_dense,
    rank_plan,
)
from pela_vl.lowrank.calibration import Calibration, InputStatistics, calibrate, collect_statistics
from pela_vl.lowrank.factorize import Factors, factorize
from pela_vl.lowrank.layer import LowRankLinear
from pela_vl.lowrank.plan import PlanError, plan_ranks, rank_for
from pela_vl.lowrank.recipe import Recipe, compress, make_recipe
from pela_vl.lowrank.whiten import WhitenedFactors, covariance_root, factorize_whitened

__all__ = [
    "Calibration",
    "Factors",
    "InputStatistics",
    "LayerReport",
    "LowRankLinear",
    "PlanError",
    "Recipe",
    "WhitenedFactors",
    "allocate_ranks",
    "apply_plan",
    "calibrate",
    "collect_statistics",
    "compress",
    "covariance_root",
    "factorize",
    "factorize_whitened",
    "low_rank_layers",
    "make_recipe",
    "merge_dense",
    "plan_ranks",
    "rank_for",
    "rank_plan",
]
