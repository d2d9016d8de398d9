"""The one entry that makes any Transformer low rank: closed-form factors, ranks, the sequential step, refinement."""

from collections.abc import Sequence

from torch import nn

from pela_vl.lowrank import Calibration, Features, PlanError, apply_plan, make_recipe, pivot
from pela_vl.lowrank.apply import Progress
from pela_vl.recovery.sequential import STRENGTH, compress_sequentially


def compress(
    model: nn.Module,
    kappa: float = 3.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    init: str = "svd",
    progress: Progress | None = None,
    rank_multiple: int = 1,
    ranks: str = "uniform",
    calibration: Calibration | None = None,
    features: Features | None = None,
    measured: bool = False,
    sequential: bool = False,
    strength: float = STRENGTH,
    pivoted: bool = False,
) -> nn.Module:
    """Plan and apply in one call, on any torch module. Changes `model` IN PLACE and returns it.

    The best factors without training: init="gauss_newton", ranks="allocated", sequential=True, with a few hundred samples as
    `calibration`. `rank_plan(model)` gives the ranks afterwards.

    Args:
        model: Any module with Linear layers.
        kappa: 3 leaves a third of the weights of every Linear that is not excluded. With ranks="allocated" it leaves a third of
            all of them together.
        include: Patterns of the layers that become low rank (`plan_ranks`); None for all Linears.
        exclude: Patterns of the layers that stay dense.
        init: "svd" (PELA), "whitened" (least error of every layer's outputs) or "gauss_newton" (least error of `features`).
        progress: Called as progress(done, total, what), counting anew for every stage.
        rank_multiple: Ranks are multiples of it.
        ranks: "uniform", or "allocated": by what each layer's error does to the features; a layer may stay dense.
        calibration: Inputs one by one. A tensor is run as model(x), a tuple as model(*x), a mapping as model(**x), and a
            function is called with the model. "whitened" with uniform ranks also takes one function that runs everything.
        features: features(model, item) gives a tensor [samples, ...] or several; None: the model's pooled output.
        measured: Scale each layer's predicted error by the measured one; takes about as long again.
        sequential: Fit every layer to its inputs behind the compressed ones before it (`compress_sequentially`).
        strength: Of the sequential correction, 0 to 1.
        pivoted: Count ranks as pivoted factors are stored, and store them so. A layer that is not exact in that form keeps plain
            factors and exceeds its part of the budget.

    Raises:
        PlanError: As `make_recipe`, `apply_plan` and `compress_sequentially` do; the model is then as it was.
    """
    if sequential and init != "gauss_newton":
        raise PlanError("sequential works on factors of init 'gauss_newton'")
    if calibration is not None and not callable(calibration):
        calibration = list(calibration)  # several passes are made over it
    recipe = make_recipe(
        model, kappa, include, exclude, init, ranks, calibration, rank_multiple, features, measured, progress, pivoted
    )
    if sequential and calibration is not None:
        compress_sequentially(
            model, recipe.plan, calibration, recipe.metrics, recipe.dense, features, strength, progress
        )
    else:
        apply_plan(model, recipe.plan, recipe.init, progress, recipe.statistics, recipe.metrics)
    if pivoted:
        pivot(model)
    return model
