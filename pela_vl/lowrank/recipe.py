"""From a dense model to a low-rank one: which layers, what is known of their inputs and outputs, which ranks, then the factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pela_vl.lowrank.allocate import allocate_ranks
from pela_vl.lowrank.apply import INITS, NEED_STATISTICS, Progress, apply_plan, run_all
from pela_vl.lowrank.calibration import Calibration, InputStatistics, calibrate
from pela_vl.lowrank.dense import Dense, in_out, weight_of
from pela_vl.lowrank.effect import cut_errors
from pela_vl.lowrank.factorize import singular_values
from pela_vl.lowrank.plan import PlanError, plan_ranks
from pela_vl.lowrank.sensitivity import Features, OutputMetric, measure_metrics
from pela_vl.lowrank.two_metrics import metric_roots, two_metric_spectrum

RANKS = ("uniform", "allocated")


@dataclass(frozen=True)
class Recipe:
    """plan: name -> rank. init: of the factors. statistics, metrics: of the inputs and outputs, by name; empty without
    calibration. dense: layers that were in the budget and keep their weights; a checkpoint stores them as what the plan
    does not name."""

    plan: dict[str, int]
    init: str
    statistics: Mapping[str, InputStatistics]
    metrics: Mapping[str, OutputMetric] = field(default_factory=dict)
    dense: tuple[str, ...] = ()


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
) -> nn.Module:
    """Plan and apply in one call, on any torch module, in closed form. Changes `model` IN PLACE and returns it.

    `pela_vl.compress` is this with the sequential step and refinement of `pela_vl.recovery` on top. `rank_plan(model)` tells
    afterwards what was done; the arguments are those of `make_recipe`.
    Raises PlanError as `plan_ranks`, `calibrate`, `measure_metrics`, `allocate_ranks` and `apply_plan` do.
    """
    recipe = make_recipe(
        model, kappa, include, exclude, init, ranks, calibration, rank_multiple, features, measured, progress
    )
    apply_plan(model, recipe.plan, recipe.init, progress, recipe.statistics, recipe.metrics)
    return model


def make_recipe(
    model: nn.Module,
    kappa: float = 3.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    init: str = "svd",
    ranks: str = "uniform",
    calibration: Calibration | None = None,
    rank_multiple: int = 1,
    features: Features | None = None,
    measured: bool = False,
    progress: Progress | None = None,
    pivoted: bool = False,
) -> Recipe:
    """All that `apply_plan` wants; the model is run on the calibration samples, and not changed.

    Args:
        kappa: 3 leaves a third of the weights of every Linear that is not excluded; with ranks="allocated" a third of all of
            them together.
        include: patterns of what becomes low rank (`plan_ranks`), as `exclude`.
        init: of the factors, see `apply_plan`. "whitened" and "gauss_newton" need a few hundred samples as `calibration`.
        ranks: "uniform", or "allocated": the least predicted error of the features that count under the budget; a layer may
            stay dense. Without samples (init "svd") nothing is known of these, and shares of the squared weights count.
        calibration: inputs, or a function that runs the model (`calibrate`); one by one (`calibration_items`) where the
            features count, i.e. for "gauss_newton" and "allocated".
        features: what counts, see `measure_metrics`; None: the model's pooled output.
        measured: scale each layer's predicted error by the measured one when it is cut alone; about as long again.
        progress: called while the samples run.
        pivoted: count rank r as r (in + out - r), the size of pivoted factors (pivot.py); ranks are then higher.
    """
    if init not in INITS:
        raise PlanError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    if ranks not in RANKS:
        raise PlanError(f"ranks must be 'uniform' or 'allocated', not {ranks!r}")
    needed = init in NEED_STATISTICS
    if needed and calibration is None:
        raise PlanError(f"init '{init}' needs calibration samples: give calibration=...")
    if not needed and calibration is not None:
        raise PlanError(f"calibration samples are used by init 'whitened' and 'gauss_newton' alone, not by '{init}'")
    by_effect = ranks == "allocated" and needed
    if measured and not by_effect:
        raise PlanError("measured scales ranks 'allocated' with calibration samples alone")
    plan = plan_ranks(model, kappa, include, exclude, rank_multiple)
    if calibration is not None and (init == "gauss_newton" or by_effect):
        statistics, metrics = measure_metrics(model, list(plan), calibration, features, progress)
    else:
        statistics, metrics = {} if calibration is None else calibrate(model, plan, calibration), {}
    if ranks == "uniform":
        if pivoted:
            plan = {name: _pivoted_rank(rank, in_out(model.get_submodule(name))) for name, rank in plan.items()}
        return Recipe(plan, init, statistics, metrics)
    uniform, scales = plan, None
    if measured and calibration is not None:
        cuts = cut_errors(model, uniform, statistics, metrics, calibration, features, progress)
        spectra = {name: cut.spectrum for name, cut in cuts.items()}
        scales = {name: cut.scale for name, cut in cuts.items()}
    else:
        spectra = _spectra(model, plan, statistics, metrics)
    shapes = {name: in_out(model.get_submodule(name)) for name in uniform}
    budget = sum(rank * sum(shapes[name]) for name, rank in uniform.items())
    plan = allocate_ranks(spectra, shapes, budget, rank_multiple, scales, by_effect, pivoted)
    dense = tuple(name for name in uniform if name not in plan)
    if init == "whitened" and calibration is not None:
        statistics = calibrate(model, plan, calibration)  # all tokens alike
    return Recipe(plan, init, statistics, metrics, dense)


def _pivoted_rank(rank: int, shape: tuple[int, int]) -> int:
    """The largest rank whose pivoted factors are no larger than plain ones of `rank`."""
    budget, most = rank * sum(shape), min(shape) - 1
    while rank < most and (rank + 1) * (sum(shape) - rank - 1) <= budget:
        rank += 1
    return rank


def _spectra(
    model: nn.Module,
    names: Sequence[str] | Mapping[str, int],
    statistics: Mapping[str, InputStatistics],
    metrics: Mapping[str, OutputMetric],
) -> dict[str, Tensor]:
    linears: dict[str, Dense] = {name: model.get_submodule(name) for name in names}
    jobs = [
        partial(_spectrum, name, linear, statistics.get(name), metrics.get(name)) for name, linear in linears.items()
    ]
    on_cpu = all(linear.weight.device.type == "cpu" for linear in linears.values())
    return dict(zip(linears, run_all(jobs, on_cpu), strict=True))


def _spectrum(name: str, linear: Dense, statistics: InputStatistics | None, metric: OutputMetric | None) -> Tensor:
    """Singular values of a layer in its two metrics; without these, of its weight, the sum of their squares being 1."""
    if linear.weight.device.type == "meta":
        raise PlanError(f"{name}: the weight is on the meta device and has no values to allocate by")
    if not linear.weight.isfinite().all():
        raise PlanError(f"{name}: the weight holds NaN or infinity")
    weight = weight_of(linear).detach()
    if statistics is not None and metric is not None:
        return two_metric_spectrum(weight, *metric_roots(statistics, metric, linear.bias is not None))
    device = "cpu" if weight.device.type == "mps" else weight.device  # which has no fp64
    values = singular_values(weight.to(device, torch.float64))
    norm = values.norm()
    return values / norm if norm > 0 else values
