"""Putting a plan into a model, and taking it out again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from pela_vl.lowrank.calibration import InputStatistics
from pela_vl.lowrank.factorize import factorize
from pela_vl.lowrank.layer import LowRankLinear
from pela_vl.lowrank.plan import PlanError, check_replaceable, shared_weights
from pela_vl.lowrank.whiten import factorize_whitened

Job = TypeVar("Job")
INITS = ("svd", "whitened", "empty")
_MOST_THREADS = 16  # each holds some fp64 copies of its layer

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, name) after each layer, `done` counting from 1."""


@dataclass(frozen=True)
class LayerReport:
    """One replaced layer.

    `rel_error` is that of the weights, and `spectrum` all singular values that were cut, on the CPU; both None for empty
    factors. `output_error` is the outputs' relative error on the calibration inputs, None without these.
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    rel_error: float | None = None
    spectrum: Tensor | None = None
    output_error: float | None = None


def apply_plan(
    model: nn.Module,
    plan: Mapping[str, int],
    init: str = "svd",
    progress: Progress | None = None,
    statistics: Mapping[str, InputStatistics] | None = None,
) -> list[LayerReport]:
    """Replace in place every Linear named in `plan` by a LowRankLinear of that rank; report each, in plan order.

    `init` is "svd" (factors of the present weights), "whitened" (those with the least error on inputs of the given
    `statistics`, see `calibrate`) or "empty" (allocated, to be loaded; works on the meta device).
    Device, dtype, training flag and requires_grad are kept, and the bias stays the very same Parameter (a corrected one
    takes its place if whitened); optimisers made before hold the old weights and must be made anew.

    Raises PlanError naming the layer when one is missing, is no plain Linear, is shared, has hooks, holds NaN, when
    its rank is not in 1..min(in, out), or statistics of it are wanted and missing or of another width. The model is then
    as it was: layers are swapped only when all are ready.
    """
    if init not in INITS:
        raise PlanError(f"init must be 'svd', 'whitened' or 'empty', not {init!r}")
    shared = shared_weights(model)
    linears = {name: check_replaceable(model, name, shared) for name in plan}
    for name, linear in linears.items():
        rank, largest = plan[name], min(linear.in_features, linear.out_features)
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
            raise PlanError(f"{name}: rank {rank!r} is not a whole number in 1..{largest}")
        if linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks:
            raise PlanError(f"{name} has hooks, which the new layer would lose: remove them first")
        if init == "whitened":
            _check_statistics(name, linear, statistics or {})
    known = statistics if init == "whitened" else {}
    jobs = [partial(_low_rank, name, linear, plan[name], init, known.get(name)) for name, linear in linears.items()]
    on_cpu = all(linear.weight.device.type == "cpu" for linear in linears.values())
    layers, reports = [], []
    for name, (layer, report) in zip(linears, run_all(jobs, on_cpu and init != "empty"), strict=True):
        layers.append(layer)
        reports.append(report)
        if progress is not None:
            progress(len(layers), len(plan), name)
    for name, layer in zip(linears, layers, strict=True):
        _install(model, name, layer)
    return reports


def merge_dense(model: nn.Module) -> nn.Module:
    """Multiply every LowRankLinear out into a Linear, W = up @ down: the inverse of `apply_plan`. Returns `model`.

    Works in place. The product is formed in fp32 at least and rounded once to the factors' dtype.
    """
    for name, layer in low_rank_layers(model).items():
        if not name:
            raise PlanError(
                "the model is itself one LowRankLinear and cannot be replaced in place: wrap it in a module"
            )
        _install(model, name, _dense(layer))
    return model


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """The LowRankLinears of `model` by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def rank_plan(model: nn.Module) -> dict[str, int]:
    """The plan that `model` carries: name -> rank of every LowRankLinear. Empty for a dense model."""
    return {name: layer.rank for name, layer in low_rank_layers(model).items()}


def run_all(jobs: Sequence[Callable[[], Job]], in_parallel: bool) -> Iterator[Job]:
    """The jobs' results in order: one after the other, or one job a thread with single-threaded linear algebra in each.

    LAPACK gains little from a second thread on matrices of this size, and loses tenfold when another process wants the
    cores; layers side by side use all cores either way, and give the same bits for any number of threads.
    """
    if not in_parallel:
        yield from (job() for job in jobs)
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(before, _MOST_THREADS), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(lambda job: job(), jobs)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # a worker's setting is also what threads started later would inherit


def _check_statistics(name: str, linear: nn.Linear, statistics: Mapping[str, InputStatistics]) -> None:
    if name not in statistics or not statistics[name].count:
        raise PlanError(f"{name}: init 'whitened' needs statistics of this layer's inputs: give calibration samples")
    if len(statistics[name].total) != linear.in_features:
        raise PlanError(
            f"{name}: the statistics are of inputs of width {len(statistics[name].total)}, not {linear.in_features}"
        )


def _low_rank(
    name: str, linear: nn.Linear, rank: int, init: str, statistics: InputStatistics | None
) -> tuple[LowRankLinear, LayerReport]:
    """The layer that replaces `linear`, and its report."""
    weight, bias = linear.weight, linear.bias
    # Built on meta: the factors are assigned next, so initialising them would waste work and draw from the RNG.
    layer = LowRankLinear(linear.in_features, linear.out_features, rank, bias is not None, "meta", weight.dtype)
    shape = (name, linear.in_features, linear.out_features, rank)
    try:
        if init == "svd":
            factors = factorize(weight, rank)
            report = LayerReport(*shape, factors.rel_error, factors.spectrum.cpu())
        elif init == "whitened":
            factors = factorize_whitened(weight, rank, statistics, bias is not None)
            report = LayerReport(*shape, factors.rel_error, factors.spectrum.cpu(), factors.output_error)
            if bias is not None:
                corrected = (bias.detach().to(factors.bias_shift) + factors.bias_shift).to(bias)
                bias = nn.Parameter(corrected, requires_grad=bias.requires_grad)
        else:
            factors = None
            report = LayerReport(*shape)
    except ValueError as error:
        raise PlanError(f"{name}: {error}") from None
    up = factors.up if factors else torch.empty_like(layer.up.weight, device=weight.device)
    down = factors.down if factors else torch.empty_like(layer.down.weight, device=weight.device)
    layer.up.weight = nn.Parameter(up.detach(), requires_grad=weight.requires_grad)
    layer.down.weight = nn.Parameter(down.detach(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.up.bias = bias
    return layer.train(linear.training), report


@torch.no_grad()
def _dense(layer: LowRankLinear) -> nn.Linear:
    """A Linear equal to `layer`, keeping its bias Parameter."""
    up, down = layer.up.weight, layer.down.weight
    linear = nn.Linear(layer.in_features, layer.out_features, layer.up.bias is not None, device="meta", dtype=up.dtype)
    working = torch.promote_types(up.dtype, torch.float32)
    product = (up.to(working) @ down.to(working)).to(up.dtype)
    linear.weight = nn.Parameter(product, requires_grad=up.requires_grad or down.requires_grad)
    if layer.up.bias is not None:
        linear.bias = layer.up.bias
    return linear.train(layer.training)


def _install(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set `model`'s submodule `name`, also inside Sequential and ModuleList, whose children are numbered."""
    owner, _, child = name.rpartition(".")
    setattr(model.get_submodule(owner), child, module)
