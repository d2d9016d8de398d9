"""From a dense model to a low-rank one: which layers, what is known of their inputs, which ranks, then the factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pela_vl.lowrank.allocate import allocate_ranks
from pela_vl.lowrank.apply import INITS, Progress, apply_plan, run_all
from pela_vl.lowrank.calibration import Calibration, InputStatistics, calibrate
from pela_vl.lowrank.factorize import singular_values
from pela_vl.lowrank.plan import PlanError, plan_ranks
from pela_vl.lowrank.whiten import whitened_spectrum

RANKS = ("uniform", "allocated")


@dataclass(frozen=True)
class Recipe:
    """plan: name -> rank. init: of the factors. statistics: of the inputs, by name; empty without calibration."""

    plan: dict[str, int]
    init: str
    statistics: Mapping[str, InputStatistics]


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
) -> nn.Module:
    """Plan and apply in one call, on any torch module. Changes `model` IN PLACE and returns it.

    kappa = 3 leaves a third of the weights of every Linear that is not excluded; with ranks="allocated" a third of all
    of them together, spread by what a rank buys in each layer. `init` is that of `apply_plan`; "whitened" needs a few
    hundred samples as `calibration`, an iterable of inputs or a function that runs the model (see `calibrate`), and then
    allocation too goes by the error of the outputs. `rank_plan(model)` tells afterwards what was done.
    Raises PlanError as `plan_ranks`, `calibrate`, `allocate_ranks` and `apply_plan` do.
    """
    recipe = make_recipe(model, kappa, include, exclude, init, ranks, calibration, rank_multiple)
    apply_plan(model, recipe.plan, recipe.init, progress, recipe.statistics)
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
) -> Recipe:
    """All that `apply_plan` wants; the model is run on the calibration samples, and not changed. See `compress`."""
    if init not in INITS:
        raise PlanError(f"init must be 'svd', 'whitened' or 'empty', not {init!r}")
    if ranks not in RANKS:
        raise PlanError(f"ranks must be 'uniform' or 'allocated', not {ranks!r}")
    if (init == "whitened") != (calibration is not None):
        raise PlanError(
            "calibration samples are used by init 'whitened' alone"
            if calibration is not None
            else "init 'whitened' needs calibration samples: give calibration=..."
        )
    plan = plan_ranks(model, kappa, include, exclude, rank_multiple)
    statistics = calibrate(model, plan, calibration) if calibration is not None else {}
    if ranks == "allocated":
        plan = allocated_plan(model, plan, statistics, rank_multiple)
    return Recipe(plan, init, statistics)


def allocated_plan(
    model: nn.Module,
    plan: Mapping[str, int],
    statistics: Mapping[str, InputStatistics],
    rank_multiple: int = 1,
) -> dict[str, int]:
    """Another plan for the same layers that spends no more weights than `plan`, see `allocate_ranks`.

    Errors are compared as shares: of a layer's squared weights, or, with statistics, of the variance of its outputs.
    """
    linears = {name: model.get_submodule(name) for name in plan}
    jobs = [partial(_spectrum, name, linear, statistics.get(name)) for name, linear in linears.items()]
    on_cpu = all(linear.weight.device.type == "cpu" for linear in linears.values())
    spectra = dict(zip(plan, run_all(jobs, on_cpu), strict=True))
    shapes = {name: (linear.in_features, linear.out_features) for name, linear in linears.items()}
    budget = sum(rank * sum(shapes[name]) for name, rank in plan.items())
    return allocate_ranks(spectra, shapes, budget, rank_multiple)


def _spectrum(name: str, linear: nn.Linear, statistics: InputStatistics | None) -> Tensor:
    """Singular values of a layer, the sum of their squares being 1."""
    if linear.weight.device.type == "meta":
        raise PlanError(f"{name}: the weight is on the meta device and has no values to allocate by")
    if not linear.weight.isfinite().all():
        raise PlanError(f"{name}: the weight holds NaN or infinity")
    if statistics is None:
        device = "cpu" if linear.weight.device.type == "mps" else linear.weight.device  # which has no fp64
        values = singular_values(linear.weight.detach().to(device, torch.float64))
    else:
        values = whitened_spectrum(linear.weight.detach(), statistics, linear.bias is not None)
    norm = values.norm()
    return values / norm if norm > 0 else values
