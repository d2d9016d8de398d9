"""Compress layer by layer: every layer makes up for what the compressed layers before it lost.

Let x~ be a layer's inputs behind the compressed layers, and y the dense model's output of the same layer. Then

    D = E[(y - W x~ - b)(x~ - mu~)^T] (C~ + ridge)^-1      W* = W + a D

W* is factorised in the metrics C~ (of x~) and G (of the dense model's outputs, see lowrank/sensitivity.py). The bias is set
so that the means agree. For a layer that writes to the residual stream, y also gets what that stream lacks so far: the dense
model's stream less the compressed one's, divided by LayerScale where there is one.

Shapes: N = rows of all samples, I = input width, O = output width.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from pela_vl.lowrank import (
    Calibration,
    LayerReport,
    LowRankLinear,
    OutputMetric,
    PlanError,
    TwoMetricFactors,
    covariance_root,
    factorize_two_metrics,
)
from pela_vl.lowrank.apply import Progress, install, low_rank_layer
from pela_vl.lowrank.calibration import calibration_items, eval_mode, joined, run_item
from pela_vl.lowrank.checks import carry_over
from pela_vl.lowrank.dense import Dense, dense_layer, in_out, weight_of
from pela_vl.lowrank.plan import check_replaceable, shared_weights
from pela_vl.lowrank.sensitivity import Features
from pela_vl.lowrank.two_metrics import INPUT_SHRINKAGE, OUTPUT_SHRINKAGE
from pela_vl.recovery.lockstep import Lockstep, Stop
from pela_vl.recovery.streams import Writer, find_writers, missing_stream, watch

STRENGTH = 0.5
RIDGE = 0.01
_CHUNK = 4096


class _Regression:
    """Moments of x~ and of the remaining error t = y - W x~ - b over all rows.

    Products are formed in fp32 and added up in fp64. x~ is taken relative to the first chunk's mean, because a large mean would
    cost the products their digits.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str) -> None:
        kinds: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.count = 0.0
        self.shift: Tensor | None = None
        self.total, self.moment = torch.zeros(inputs, **kinds), torch.zeros(inputs, inputs, **kinds)
        self.total_t, self.cross = torch.zeros(outputs, **kinds), torch.zeros(outputs, inputs, **kinds)

    def add(self, x: Tensor, t: Tensor, weights: Tensor, with_inputs: bool) -> None:
        """Count further rows.

        Args:
            x: Inputs [N, I].
            t: Remaining errors [N, O].
            weights: Weight of each row [N].
            with_inputs: Add to the moments of x~ too; False where `inputs_of` took them from a layer with the same inputs.
        """
        parts = max(1, round(len(x) / _CHUNK))  # alike: a product of a few left over costs as much as one of many
        for rows, rest, by in zip(*(given.tensor_split(parts) for given in (x, t, weights)), strict=True):
            rows, rest = rows.float(), by[:, None] * rest.float()
            if self.shift is None:
                self.shift = rows.mean(0)
            rows = rows - self.shift
            self.cross += rest.T @ rows
            self.total_t += rest.sum(0, dtype=torch.float64)
            if with_inputs:
                weighted = by[:, None] * rows
                self.count += float(by.sum(dtype=torch.float64))
                self.total += weighted.sum(0, dtype=torch.float64)
                self.moment += weighted.T @ rows

    def inputs_of(self, other: "_Regression") -> None:
        """Take the moments of x~ from a layer that had the same inputs."""
        self.count, self.shift = other.count, other.shift
        self.total, self.moment = other.total, other.moment

    def plus(self, other: "_Regression") -> "_Regression":
        """All rows of both, which have one shift."""
        whole = _Regression.__new__(_Regression)
        whole.shift = self.shift
        for name in ("count", "total", "moment", "total_t", "cross"):
            setattr(whole, name, getattr(self, name) + getattr(other, name))
        return whole

    @property
    def mean(self) -> Tensor:
        assert self.shift is not None, "no rows were added"
        return self.total / self.count + self.shift

    def second(self, centred: bool) -> Tensor:
        """Covariance [I, I] of x~, or, not centred, E x~ x~^T."""
        mean = self.total / self.count
        covariance = self.moment / self.count - torch.outer(mean, mean)
        return covariance if centred else covariance + torch.outer(self.mean, self.mean)

    def cross_moment(self, centred: bool) -> Tensor:
        """E (t - mean)(x~ - mu~)^T [O, I], or E t x~^T."""
        mean = self.total_t / self.count
        covariance = self.cross / self.count - torch.outer(mean, self.total / self.count)
        return covariance if centred else covariance + torch.outer(mean, self.mean)

    def step(self, centred: bool) -> Tensor | None:
        """D [O, I] of these rows; None where the inputs are constant or not finite."""
        second = self.second(centred)
        scale = second.diagonal().mean()
        if not scale > 0:
            return None
        second.diagonal().add_(RIDGE * scale)
        lower, failed = torch.linalg.cholesky_ex(second)
        return None if failed else torch.cholesky_solve(self.cross_moment(centred).T, lower).T


Folds = tuple[_Regression, _Regression]
Last = tuple[list[ref[Tensor]], Folds]
"""The inputs of the layer before, without keeping them in memory, and its moments."""


def held_out_strength(folds: Folds, metric: Tensor | None, centred: bool) -> float:
    """The a in 0..1 with the least error on batches that D was not fitted to, in the metric G, by two halves of the batches.

    D of one half tells a D of the other: a = sum <G D_k, E t x~^T> / sum <G D_k, D_k C~>, both moments of the other half. The
    D of all batches has half the noise, so that its a is 2 a / (1 + a). No gain, and too few rows: 0.

    Args:
        folds: Moments of the two halves.
        metric: G [O, O]; None: all outputs count alike.
        centred: The layer has a bias, which takes the means.
    """
    gain = size = 0.0
    for fitted, other in (folds, folds[::-1]):
        if not (fitted.count and other.count):
            return 0.0
        step = fitted.step(centred)
        if step is None:
            return 0.0
        weighed = step if metric is None else metric @ step
        gain += float((weighed * other.cross_moment(centred)).sum())
        size += float((weighed * (step @ other.second(centred))).sum())
    a = min(max(gain / size, 0.0), 1.0) if size > 0 else 0.0
    return 2 * a / (1 + a)


@torch.no_grad()
def compress_sequentially(
    model: nn.Module,
    plan: Mapping[str, int],
    calibration: Calibration,
    metrics: Mapping[str, OutputMetric] | None = None,
    dense: Sequence[str] = (),
    features: Features | None = None,
    strength: float | None = STRENGTH,
    progress: Progress | None = None,
) -> list[LayerReport]:
    """Replace the Linears of `plan` in place, each fitted to its inputs behind the compressed layers before it.

    This takes about one dense and one compressed pass over the samples, and one factorisation for each layer. Memory holds what
    two forward passes of all batches hold while they run. The model is changed only when all layers are ready. A layer that a
    batch calls several times is fitted to its first call.

    Args:
        model: The dense model.
        plan: Rank by layer name.
        calibration: Batches one by one (`calibration_items`).
        metrics: Of the outputs, by layer (`measure_metrics`); None: all outputs count alike.
        dense: Layers that keep all their weights and are fitted as well.
        features: Only runs the model here, as features(model, item); None: the item's own way.
        strength: a in W* = W + a D, from 0 (no correction) to 1. What is best depends on the number of samples; None: for each
            layer the best on held-out batches (`held_out_strength`).
        progress: Called as progress(done, total, layer).

    Returns:
        A report for each layer of the plan, in plan order.

    Raises:
        PlanError: When no blocks are known (`find_writers`), a layer is never run, or the strength is not in 0..1.
    """
    if strength is not None and not 0 <= strength <= 1:
        raise PlanError(f"strength {strength!r} is not in 0..1")
    items = calibration_items(calibration)
    names = [*plan, *dense]
    shared = shared_weights(model)
    linears = {name: check_replaceable(model, name, shared) for name in names}
    writers = find_writers(model, names)
    ready: dict[str, nn.Module] = {}
    spectra: dict[str, Tensor | None] = {}
    last: Last | None = None
    with eval_mode(model):
        steps = Lockstep(model, names, items, features or run_item, lambda on_stream: watch(writers, on_stream))
        for name, pairs in steps.stops():
            linear = linears[name]
            found = _moments(linear, pairs, writers.get(name), last, metrics[name].weights if metrics else [])
            if not all(torch.isfinite(fold.total).all() for fold in found):
                raise PlanError(f"{name}: its calibration inputs hold NaN or infinity")
            metric = metrics[name].matrix if metrics is not None else None
            ready[name], spectra[name] = _fit(linear, found, plan.get(name), metric, strength)
            steps.replaced[name] = ready[name]
            last = [ref(small.x) for _, small in pairs], found
            if progress is not None:
                progress(len(ready), len(names), name)
    absent = [name for name in names if name not in ready]
    if absent:
        raise PlanError(f"{absent[0]}: no calibration sample went through this layer: give samples, or exclude it")
    reports = [fit_report(name, linears[name], ready[name], spectra[name]) for name in plan]
    for name in names:
        install(model, name, ready[name])
    return reports


def fit_report(name: str, linear: nn.Module, layer: nn.Module, spectrum: Tensor | None = None) -> LayerReport:
    """The report of a low-rank layer that was fitted in a dense one's place.

    Its error is that of the weight. The layer was fitted to outputs, so this error may be larger than that of a plain SVD.

    Args:
        name: The layer's name in the model.
        linear: The dense layer.
        layer: The LowRankLinear in its place.
        spectrum: Singular values [K] of W* in the layer's two metrics, None if they are not known.
    """
    assert isinstance(layer, LowRankLinear)
    inputs, outputs = in_out(linear)
    weight = weight_of(linear).detach().float()
    left = weight - layer.up.weight.detach().float() @ layer.down.weight.detach().float()
    norm = float(weight.norm())
    return LayerReport(name, inputs, outputs, layer.rank, float(left.norm()) / norm if norm else 0.0, spectrum)


def _moments(
    linear: Dense,
    pairs: Sequence[tuple[Stop, Stop]],
    writer: Writer | None,
    last: Last | None,
    weights: Sequence[Tensor],
) -> Folds:
    """Of the batches of even and of odd number; with one batch alone the second is empty."""
    inputs, outputs = in_out(linear)
    device = linear.weight.device if linear.weight.device.type != "mps" else "cpu"
    folds = _Regression(inputs, outputs, device), _Regression(inputs, outputs, device)
    xs = [small.x for _, small in pairs]  # the same tensor again: queries, keys and values of an attention
    known = last is not None and len(last[0]) == len(xs) and all(a() is b for a, b in zip(last[0], xs, strict=True))
    if last is not None and known:
        for fold, before in zip(folds, last[1], strict=True):
            fold.inputs_of(before)
    for place, fold in enumerate(folds):
        waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        chosen = pairs[place::2]
        fold.shift = folds[0].shift
        for number, (dense, small) in enumerate(chosen):
            if dense.y.shape != small.y.shape:
                raise PlanError(
                    "sequential: the compressed model takes another way through its layers than the dense one"
                )
            rest = dense.y - small.y
            if writer is not None:
                missing = missing_stream(writer, dense.stream, small.stream, rest)
                rest = rest if missing is None else rest + missing
            x = small.x.reshape(-1, inputs).to(device)
            by = weights[small.item].to(device) if small.item < len(weights) else torch.ones(len(x), device=device)
            if len(by) != len(x):
                raise PlanError(
                    "sequential: calibration gives other inputs than those that the metrics were measured on"
                )
            waiting.append((x, rest.reshape(-1, outputs).to(device), by))
            if sum(len(rows) for rows, _, _ in waiting) >= _CHUNK or number + 1 == len(chosen):
                rows, rests, counts = (joined(parts) for parts in zip(*waiting, strict=True))
                fold.add(rows, rests, counts, not known)
                waiting = []
    return folds


def _fit(
    linear: Dense, folds: Folds, rank: int | None, metric: Tensor | None, strength: float | None
) -> tuple[nn.Module, Tensor | None]:
    """What takes the layer's place: factors of W* of that rank, and its spectrum; or, for None, W* itself."""
    has_bias = linear.bias is not None
    weight = weight_of(linear).detach()
    found = folds[0].plus(folds[1])
    exact = weight.to(found.moment)
    metric = metric.to(found.moment) if metric is not None else None
    if strength is None:
        strength = held_out_strength(folds, metric, has_bias)
    step = found.step(has_bias) if strength else None
    target = exact if step is None else exact + strength * step
    factors: TwoMetricFactors | None = None
    if rank is None:
        product = target.to(weight)
    else:
        inputs = covariance_root(found.second(has_bias), INPUT_SHRINKAGE)
        outputs = covariance_root(torch.eye(len(weight)).to(exact) if metric is None else metric, OUTPUT_SHRINKAGE)
        factors = factorize_two_metrics(target, rank, inputs, outputs)
        up, down = factors.up.to(weight), factors.down.to(weight)
        product = up.to(exact) @ down.to(exact)
    bias = None
    if has_bias:
        shift = found.total_t / found.count + (exact - product.to(exact)) @ found.mean
        bias = nn.Parameter((linear.bias.detach().to(shift) + shift).to(linear.bias), linear.bias.requires_grad)
    if factors is not None:
        return low_rank_layer(linear, up, down, bias), factors.spectrum.float().cpu()
    layer = dense_layer(type(linear), product, bias, linear.weight.requires_grad)
    carry_over(linear, layer)
    return layer.train(linear.training), None
