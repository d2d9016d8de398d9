"""Putting a plan into a model, and taking it out again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from pela_vl.lowrank.factorize import factorize
from pela_vl.lowrank.layer import LowRankLinear
from pela_vl.lowrank.plan import PlanError, check_replaceable, plan_ranks, shared_weights

Job = TypeVar("Job")
_MOST_THREADS = 16  # each holds some fp64 copies of its layer

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, name) after each layer, `done` counting from 1."""


@dataclass(frozen=True)
class LayerReport:
    """One replaced layer. `rel_error` and `spectrum` (all singular values, on the CPU) are None for empty factors."""

    name: str
    in_features: int
    out_features: int
    rank: int
    rel_error: float | None = None
    spectrum: Tensor | None = None


def apply_plan(
    model: nn.Module, plan: Mapping[str, int], init: str = "svd", progress: Progress | None = None
) -> list[LayerReport]:
    """Replace in place every Linear named in `plan` by a LowRankLinear of that rank; report each, in plan order.

    `init` is "svd" (factors of the present weights) or "empty" (allocated, to be loaded; works on the meta device).
    Device, dtype, training flag and requires_grad are kept, and the bias stays the very same Parameter; optimisers
    made before hold the old weights and must be made anew.

    Raises PlanError naming the layer when one is missing, is no plain Linear, is shared, has hooks, holds NaN, or when
    its rank is not in 1..min(in, out). The model is then as it was: layers are swapped only when all are ready.
    """
    if init not in ("svd", "empty"):
        raise PlanError(f"init must be 'svd' or 'empty', not {init!r}")
    shared = shared_weights(model)
    linears = {name: check_replaceable(model, name, shared) for name in plan}
    for name, linear in linears.items():
        rank, largest = plan[name], min(linear.in_features, linear.out_features)
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
            raise PlanError(f"{name}: rank {rank!r} is not a whole number in 1..{largest}")
        if linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks:
            raise PlanError(f"{name} has hooks, which the new layer would lose: remove them first")
    jobs = [partial(_low_rank, name, linear, plan[name], init) for name, linear in linears.items()]
    on_cpu = all(linear.weight.device.type == "cpu" for linear in linears.values())
    layers, reports = [], []
    for name, (layer, report) in zip(linears, _run_all(jobs, on_cpu and init == "svd"), strict=True):
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


def compress(
    model: nn.Module,
    kappa: float = 3.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    init: str = "svd",
    progress: Progress | None = None,
    rank_multiple: int = 1,
) -> nn.Module:
    """Plan and apply in one call, on any torch module. Changes `model` IN PLACE and returns it.

    kappa = 3 leaves a third of the weights of every Linear that is not excluded. `rank_plan(model)` tells afterwards
    what was done; `plan_ranks` and `apply_plan` are the two halves, for the per-layer errors.
    Raises PlanError as they do.
    """
    apply_plan(model, plan_ranks(model, kappa, include, exclude, rank_multiple), init, progress)
    return model


def _run_all(jobs: Sequence[Callable[[], Job]], in_parallel: bool) -> Iterator[Job]:
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


def _low_rank(name: str, linear: nn.Linear, rank: int, init: str) -> tuple[LowRankLinear, LayerReport]:
    """The layer that replaces `linear`, and its report."""
    weight = linear.weight
    # Built on meta: the factors are assigned next, so initialising them would waste work and draw from the RNG.
    layer = LowRankLinear(linear.in_features, linear.out_features, rank, linear.bias is not None, "meta", weight.dtype)
    shape = (name, linear.in_features, linear.out_features, rank)
    if init == "svd":
        try:
            factors = factorize(weight, rank)
        except ValueError as error:
            raise PlanError(f"{name}: {error}") from None
        up, down = factors.up, factors.down
        report = LayerReport(*shape, factors.rel_error, factors.spectrum.cpu())
    else:
        up = torch.empty_like(layer.up.weight, device=weight.device)
        down = torch.empty_like(layer.down.weight, device=weight.device)
        report = LayerReport(*shape)
    layer.up.weight = nn.Parameter(up.detach(), requires_grad=weight.requires_grad)
    layer.down.weight = nn.Parameter(down.detach(), requires_grad=weight.requires_grad)
    if linear.bias is not None:
        layer.up.bias = linear.bias
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
