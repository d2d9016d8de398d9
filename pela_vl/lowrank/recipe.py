"""From a dense model to a low-rank one in closed form: choose layers, calibrate, choose ranks, factorise."""

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
from pela_vl.lowrank.output_metric import OutputMetric
from pela_vl.lowrank.plan import PlanError, plan_ranks
from pela_vl.lowrank.prefix import blocks_of
from pela_vl.lowrank.sensitivity import Features, measure_metrics
from pela_vl.lowrank.two_metrics import metric_roots, two_metric_spectrum

RANKS = ("uniform", "allocated")
EARLY, EARLY_PREDICTED = 0.2, 0.5
"""What a measured, and what a predicted error in the first of a list of blocks counts by, one in the last being 1."""
Gathered = tuple[Mapping[str, InputStatistics], Mapping[str, OutputMetric]]
"""Statistics of inputs and metrics of outputs, by layer."""


@dataclass(frozen=True)
class Recipe:
    """The arguments of `apply_plan` for one model.

    Attributes:
        plan: rank by layer name.
        init: of the factors.
        statistics: of the layers' inputs by name; empty without calibration.
        metrics: of the layers' outputs by name; empty where neither init nor ranks need them.
        dense: layers inside the budget that keep their weights. A checkpoint does not store them: it stores the plan.
        refined: names of parameters that were trained after the factors were made.
    """

    plan: dict[str, int]
    init: str
    statistics: Mapping[str, InputStatistics]
    metrics: Mapping[str, OutputMetric] = field(default_factory=dict)
    dense: tuple[str, ...] = ()
    refined: tuple[str, ...] = ()


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
    """Compress any torch module in closed form. Changes `model` IN PLACE and returns it.

    `pela_vl.compress` adds the sequential step and the refinement of `pela_vl.recovery`. `rank_plan(model)` returns the
    ranks afterwards.

    Args:
        model: the dense model.
        kappa: compression ratio, see `make_recipe`.
        include: patterns of Linears to compress; None: all.
        exclude: patterns of modules to leave dense.
        init: "svd", "whitened" or "gauss_newton", see `apply_plan`.
        progress: called while calibration runs and after each layer.
        rank_multiple: ranks are multiples of this, see `plan_ranks`.
        ranks: "uniform" or "allocated", see `make_recipe`.
        calibration: samples, for "whitened" and "gauss_newton"; None otherwise.
        features: the features whose error counts; None: `model_features`.
        measured: correct predicted errors by measured ones, see `make_recipe`.

    Raises:
        PlanError: As `make_recipe` and `apply_plan`.
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
    gathered: Gathered | None = None,
    sequential: bool = False,
) -> Recipe:
    """Choose layers, ranks and init, and gather what `apply_plan` needs. The model is run on the samples, and not
    changed.

    Args:
        model: the dense model.
        kappa: 3 leaves a third of the weights of every Linear that is not excluded; with ranks="allocated", a third of
            all of them together.
        include: patterns of Linears to compress (`plan_ranks`); None: all.
        exclude: patterns of modules to leave dense.
        init: of the factors, see `apply_plan`. "whitened" and "gauss_newton" need a few hundred calibration samples.
        ranks: "uniform" (the same kappa for every layer) or "allocated" (the least predicted error of the features
            under one budget; a layer may stay dense). With init "svd" the error is that of the weights, relative to
            each layer's norm.
        calibration: inputs, or a function that runs the model (`calibrate`). Where features count ("gauss_newton",
            "allocated"), inputs one by one (`calibration_items`).
        rank_multiple: ranks are multiples of this (`plan_ranks`).
        features: the features whose error counts, see `measure_metrics`; None: the model's pooled output.
        measured: scale each layer's predicted error by the error measured when that layer alone is cut. Doubles the
            time.
        progress: called while the samples run.
        pivoted: count rank r as r (in + out - r), the size of pivoted factors (pivot.py); ranks come out higher.
        gathered: what `measure_metrics` found before, which saves the pass over the samples: several values of kappa can
            share one.
        sequential: the ranks are for the sequential step, in which later layers make up for a part of what earlier ones
            lose: errors count by `position_scales`, predicted ones less so than measured ones.

    Raises:
        PlanError: If options contradict each other, or as `plan_ranks`, `calibrate`, `measure_metrics` and
            `allocate_ranks`.
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
    if gathered is not None:
        statistics, metrics = gathered
    elif calibration is not None and (init == "gauss_newton" or by_effect):
        statistics, metrics = measure_metrics(model, list(plan), calibration, features, progress)
    else:
        statistics, metrics = {} if calibration is None else calibrate(model, plan, calibration), {}
    if ranks == "uniform":
        if pivoted:
            plan = {name: _pivoted_rank(rank, in_out(model.get_submodule(name))) for name, rank in plan.items()}
        return Recipe(plan, init, statistics, metrics)
    uniform = plan
    scales = dict.fromkeys(plan, 1.0)
    if sequential and by_effect:
        scales = position_scales(model, list(plan), EARLY if measured else EARLY_PREDICTED)
    if measured and calibration is not None:
        cuts = cut_errors(model, uniform, statistics, metrics, calibration, features, progress)
        spectra = {name: cut.spectrum for name, cut in cuts.items()}
        scales = {name: cut.scale * scales[name] for name, cut in cuts.items()}
    else:
        spectra = _spectra(model, plan, statistics, metrics, progress)
    shapes = {name: in_out(model.get_submodule(name)) for name in uniform}
    budget = sum(rank * sum(shapes[name]) for name, rank in uniform.items())
    plan = allocate_ranks(spectra, shapes, budget, rank_multiple, scales, by_effect, pivoted)
    dense = tuple(name for name in uniform if name not in plan)
    if init == "whitened" and calibration is not None:
        statistics = calibrate(model, plan, calibration)  # all tokens alike
    return Recipe(plan, init, statistics, metrics, dense)


def position_scales(model: nn.Module, names: Sequence[str], early: float = EARLY) -> dict[str, float]:
    """What the layers' errors count by where later layers make up for a part of them.

    `early` in the first block of a list of layers, 1 in the last and outside of lists, geometrically in between.

    Args:
        model: the model.
        names: its layers.
        early: what the first block's errors count by.
    """
    lists: dict[str, list[str]] = {}
    for block in blocks_of(model, names):
        lists.setdefault(block.rpartition(".")[0], []).append(block)
    scales = dict.fromkeys(names, 1.0)
    for blocks in lists.values():
        for place, block in enumerate(blocks):
            depth = place / max(len(blocks) - 1, 1)
            scales |= {name: early ** (1 - depth) for name in names if name.startswith(block + ".")}
    return scales


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
    progress: Progress | None,
) -> dict[str, Tensor]:
    linears: dict[str, Dense] = {name: model.get_submodule(name) for name in names}
    jobs = [
        partial(_spectrum, name, linear, statistics.get(name), metrics.get(name)) for name, linear in linears.items()
    ]
    on_cpu = all(linear.weight.device.type == "cpu" for linear in linears.values())
    found: dict[str, Tensor] = {}
    for name, spectrum in zip(linears, run_all(jobs, on_cpu), strict=True):
        found[name] = spectrum
        if progress is not None:
            progress(len(found), len(linears), "spectra")
    return found


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
