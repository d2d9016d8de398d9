"""Low-rank replacement of Linear layers. Needs torch alone and knows no model by name."""

from pela_vl.lowrank.apply import (
    LayerReport,
    apply_plan,
    compress,
    low_rank_layers,
    merge_dense,
    rank_plan,
)
from pela_vl.lowrank.factorize import Factors, factorize
from pela_vl.lowrank.layer import LowRankLinear
from pela_vl.lowrank.plan import PlanError, plan_ranks, rank_for

__all__ = [
    "Factors",
    "LayerReport",
    "LowRankLinear",
    "PlanError",
    "apply_plan",
    "compress",
    "factorize",
    "low_rank_layers",
    "merge_dense",
    "plan_ranks",
    "rank_for",
    "rank_plan",
]
