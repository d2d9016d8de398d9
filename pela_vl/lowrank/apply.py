"""Replacing the Linears of a model by low-rank layers as a plan says, and turning them back into Linears."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from pela_vl.lowrank.calibration import InputStatistics
from pela_vl.lowrank.checks import carry_over, check_not_wrapped
from pela_vl.lowrank.dense import Dense, dense_layer, in_out, weight_of
from pela_vl.lowrank.factorize import Factors, factorize
from pela_vl.lowrank.layer import LowRankLinear
from pela_vl.lowrank.output_metric import OutputMetric
from pela_vl.lowrank.pivot import PivotedLinear, pivot_layer, pivoted_layers
from pela_vl.lowrank.plan import PlanError, check_replaceable, shared_weights
from pela_vl.lowrank.two_metrics import TwoMetricFactors, factorize_two_metrics, metric_roots
from pela_vl.lowrank.whiten import WhitenedFactors, factorize_whitened

Job = TypeVar("Job")
INITS = ("svd", "whitened", "gauss_newton", "empty")
NEED_STATISTICS = ("whitened", "gauss_newton")
_MOST_THREADS = 16  # each holds some fp64 copies of its layer

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, name) after each layer, `done` counting from 1."""


@dataclass(frozen=True)
class LayerReport:
    """One replaced layer.

    Attributes:
        rel_error: relative Frobenius error of the weights; None for empty factors.
        spectrum: singular values of the matrix that was truncated, on the CPU; None for empty factors.
        output_error: relative error of the outputs on the calibration inputs; None for any init but "whitened".
        predicted_error: predicted squared error of the model's features; None for any init but "gauss_newton".
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    rel_error: float | None = None
    spectrum: Tensor | None = None
    output_error: float | None = None
    predicted_error: float | None = None


def apply_plan(
    model: nn.Module,
    plan: Mapping[str, int],
    init: str = "svd",
    progress: Progress | None = None,
    statistics: Mapping[str, InputStatistics] | None = None,
    metrics: Mapping[str, OutputMetric] | None = None,
    pivoted: Collection[str] = (),
) -> list[LayerReport]:
    """Replace every Linear named in `plan` by a LowRankLinear of that rank, in place.

    Device, dtype, training flag and requires_grad are kept. The bias stays the same Parameter, except where the init
    corrects it ("whitened", "gauss_newton"). An optimiser created before still holds the old weights and must be
    created again. Attributes set on a layer or its weight are carried over. transformers' Conv1D counts as a Linear.

    Args:
        model: the model; layers are swapped only when all factors are ready, so an error leaves it unchanged.
        plan: rank by module name, in 1..min(in, out).
        init: "svd" (truncated SVD of the present weights), "whitened" (least output error on the inputs of
            `statistics`, see `calibrate`), "gauss_newton" (least error of the features by `statistics` and `metrics`,
            see `measure_metrics`) or "empty" (allocated, to be loaded; works on the meta device).
        progress: called after each layer.
        statistics: of each layer's inputs by name, for "whitened" and "gauss_newton"; ignored otherwise.
        metrics: of each layer's outputs by name, for "gauss_newton"; ignored otherwise.
        pivoted: names in the plan that become PivotedLinears, only with init "empty".

    Returns:
        One report per layer, in plan order.

    Raises:
        PlanError: Naming the layer, when it is missing, is no plain Linear, is shared, has hooks or holds NaN, when its
            rank is out of range, or when statistics that the init needs are missing or of another width.
    """
    if init not in INITS:
        raise PlanError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    if pivoted and (init != "empty" or not set(pivoted) <= set(plan)):
        raise PlanError("pivoted names layers of the plan that are loaded, with init 'empty'")
    check_not_wrapped(model)
    shared = shared_weights(model)
    linears = {name: check_replaceable(model, name, shared) for name in plan}
    for name, linear in linears.items():
        rank, largest = plan[name], min(in_out(linear))
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
            raise PlanError(f"{name}: rank {rank!r} is not a whole number in 1..{largest}")
        if init in NEED_STATISTICS:
            _check_statistics(name, linear, init, statistics or {}, metrics)
    known = statistics if statistics is not None and init in NEED_STATISTICS else {}
    sensitive = metrics if metrics is not None and init == "gauss_newton" else {}
    jobs = [
        partial(_low_rank, name, linear, plan[name], init, known.get(name), sensitive.get(name), name in pivoted)
        for name, linear in linears.items()
    ]
    on_cpu = all(linear.weight.device.type == "cpu" for linear in linears.values())
    layers, reports = [], []
    for name, (layer, report) in zip(linears, run_all(jobs, on_cpu and init != "empty"), strict=True):
        layers.append(layer)
        reports.append(report)
        if progress is not None:
            progress(len(layers), len(plan), name)
    for name, layer in zip(linears, layers, strict=True):
        install(model, name, layer)
    return reports


def merge_dense(model: nn.Module) -> nn.Module:
    """Turn every low-rank layer into a Linear (or Conv1D) with W = up @ down, in place: the inverse of `apply_plan`.
    Returns `model`.

    The product is formed in fp32 or wider and rounded once to the factors' dtype.

    Raises:
        PlanError: If `model` is itself a low-rank layer.
    """
    for name, layer in (low_rank_layers(model) | pivoted_layers(model)).items():
        if not name:
            raise PlanError(
                "the model is itself one low-rank layer and cannot be replaced in place: wrap it in a module"
            )
        install(model, name, _dense(layer))
    return model


def pivot(model: nn.Module) -> list[str]:
    """Give every LowRankLinear of `model` its pivoted form, in place, where that is exact (`pivot_layer`).

    Returns the names of those that keep plain factors.
    """
    plain = []
    for name, layer in low_rank_layers(model).items():
        form = pivot_layer(layer) if name else None
        if form is None:
            plain.append(name)
        else:
            install(model, name, form)
    return plain


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """The LowRankLinears of `model` by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def rank_plan(model: nn.Module) -> dict[str, int]:
    """The plan that `model` carries: name -> rank of every low-rank layer. Empty for a dense model."""
    kinds = LowRankLinear | PivotedLinear
    return {name: module.rank for name, module in model.named_modules() if isinstance(module, kinds)}


def run_all(jobs: Sequence[Callable[[], Job]], in_parallel: bool) -> Iterator[Job]:
    """Run independent jobs and yield their results in order.

    Every worker thread uses single-threaded linear algebra. LAPACK gains little from a second thread on matrices of
    this size, and becomes ten times slower when another process wants the cores. Results do not depend on the thread
    count.

    Args:
        jobs: functions without arguments.
        in_parallel: run one job per thread; else one after the other in this thread.
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
        torch.set_num_threads(before)  # threads started later would inherit a worker's setting


def _check_statistics(
    name: str,
    linear: nn.Module,
    init: str,
    statistics: Mapping[str, InputStatistics],
    metrics: Mapping[str, OutputMetric] | None,
) -> None:
    if name not in statistics or not statistics[name].count:
        raise PlanError(f"{name}: init '{init}' needs statistics of this layer's inputs: give calibration samples")
    inputs, outputs = in_out(linear)
    if len(statistics[name].total) != inputs:
        raise PlanError(f"{name}: the statistics are of inputs of width {len(statistics[name].total)}, not {inputs}")
    if init == "gauss_newton":
        if metrics is None or name not in metrics:
            raise PlanError(f"{name}: init 'gauss_newton' needs the metric of this layer's outputs (measure_metrics)")
        if metrics[name].width != outputs:
            raise PlanError(f"{name}: the metric is of outputs of width {metrics[name].width}, not {outputs}")


def _low_rank(
    name: str,
    linear: Dense,
    rank: int,
    init: str,
    statistics: InputStatistics | None,
    metric: OutputMetric | None,
    pivoted: bool,
) -> tuple[nn.Module, LayerReport]:
    """The layer that replaces `linear`, and its report."""
    weight, bias = weight_of(linear), linear.bias
    inputs, outputs = in_out(linear)
    report = LayerReport(name, inputs, outputs, rank)
    try:
        if init == "empty":
            kind = PivotedLinear if pivoted else LowRankLinear
            # On meta, then allocated: initialising would waste work and draw from the RNG.
            layer = kind(inputs, outputs, rank, bias is not None, "meta", weight.dtype).to_empty(device=weight.device)
            layer.requires_grad_(weight.requires_grad)
            if isinstance(layer, PivotedLinear):
                layer.bias = bias
            else:
                layer.up.bias = bias
            carry_over(linear, layer)
            return layer.train(linear.training), report
        shift: Tensor | None = None
        factors: Factors | WhitenedFactors | TwoMetricFactors
        if init == "svd":
            factors = factorize(weight, rank)
            report = replace(report, rel_error=factors.rel_error, spectrum=factors.spectrum.cpu())
        elif init == "whitened":
            assert statistics is not None  # checked by `_check_statistics`
            factors = factorize_whitened(weight, rank, statistics, bias is not None)
            report = replace(report, rel_error=factors.rel_error, spectrum=factors.spectrum.cpu())
            report = replace(report, output_error=factors.output_error)
            shift = factors.bias_shift
        else:
            assert statistics is not None and metric is not None  # likewise
            factors = factorize_two_metrics(weight, rank, *metric_roots(statistics, metric, bias is not None))
            report = replace(report, rel_error=factors.rel_error, spectrum=factors.spectrum.float().cpu())
            report = replace(report, predicted_error=factors.predicted_error)
    except ValueError as error:
        raise PlanError(f"{name}: {error}") from None
    up, down = factors.up.to(weight), factors.down.to(weight)
    if (
        init == "gauss_newton" and bias is not None and statistics is not None
    ):  # from the rounded factors, so that the bias corrects the rounding too
        mean = statistics.mean
        shift = weight.detach().to(mean) @ mean - up.to(mean) @ (down.to(mean) @ mean)
    if shift is not None:
        corrected = (bias.detach().to(shift) + shift).to(bias)
        bias = nn.Parameter(corrected, requires_grad=bias.requires_grad)
    return low_rank_layer(linear, up, down, bias), report


def low_rank_layer(linear: Dense, up: Tensor, down: Tensor, bias: nn.Parameter | None) -> LowRankLinear:
    """Create the LowRankLinear that takes `linear`'s place, and carry over its flags and attributes.

    Args:
        linear: the Linear or Conv1D to be replaced; it is only read.
        up: [O, R], copied.
        down: [R, I], copied.
        bias: [O], used as it is (the same Parameter); None for a layer without bias.
    """
    (inputs, outputs), rank = in_out(linear), len(down)
    # On meta: the factors are assigned next, so initialising them would waste work and draw from the RNG.
    layer = LowRankLinear(inputs, outputs, rank, bias is not None, "meta", up.dtype)
    wanted = linear.weight.requires_grad
    layer.up.weight = nn.Parameter(_row_by_row(up), requires_grad=wanted)
    layer.down.weight = nn.Parameter(_row_by_row(down), requires_grad=wanted)
    if bias is not None:
        layer.up.bias = bias
    carry_over(linear, layer)
    return layer.train(linear.training)


def _row_by_row(factor: Tensor) -> Tensor:
    """A copy whose strides are those of a new tensor.

    `contiguous()` keeps the strides (1, O) of a transposed column [O, 1], and DeepSpeed cannot view such a tensor as bytes.
    """
    return factor.detach().clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def _dense(layer: LowRankLinear | PivotedLinear) -> Dense:
    """A Linear, or the Conv1D that it was, equal to `layer`, keeping its bias Parameter."""
    if isinstance(layer, PivotedLinear):
        bias, weights = layer.bias, (layer.down.weight, layer.rest.weight)
        working = torch.promote_types(weights[0].dtype, torch.float32)
        rows = weights[0].to(working)
        product = torch.cat([rows, weights[1].to(working) @ rows]).index_select(0, layer.order)
    else:
        bias, weights = layer.up.bias, (layer.up.weight, layer.down.weight)
        working = torch.promote_types(weights[0].dtype, torch.float32)
        product = weights[0].to(working) @ weights[1].to(working)
    wanted = any(weight.requires_grad for weight in weights)
    kind = vars(layer).get("dense_kind", nn.Linear)
    dense = dense_layer(kind, product.to(weights[0].dtype), bias, wanted)
    for key, value in vars(layer).items():  # data that was set on the layer
        if key not in (*vars(dense), "in_features", "out_features", "rank", "dense_kind"):
            setattr(dense, key, value)
    return dense.train(layer.training)


def install(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a submodule, also inside Sequential and ModuleList, whose children have numbers as names.

    Args:
        model: the model, changed in place.
        name: full dotted name of the submodule to replace.
        module: the new submodule.

    Raises:
        AttributeError: If the parent of `name` does not exist.
    """
    owner, _, child = name.rpartition(".")
    setattr(model.get_submodule(owner), child, module)
