"""Rows of benchmarks/frontier.py: the ways to make factors, and what one of them gives on a subject."""

import copy
import time
from typing import Any

import torch
import torch.nn.functional as F

import pela_vl
from benchmarks.encoders import Subject
from pela_vl.base.system import peak_memory
from pela_vl.lowrank import low_rank_layers, measure_metrics, merge_dense, plan_ranks
from pela_vl.lowrank.allocate import allocate_ranks
from pela_vl.lowrank.calibration import calibrate
from pela_vl.lowrank.dense import in_out
from pela_vl.lowrank.recipe import EARLY_PREDICTED, position_scales
from pela_vl.lowrank.two_metrics import metric_roots, two_metric_spectrum
from pela_vl.recovery.sequential import compress_sequentially

ALLOCATED = {"init": "gauss_newton", "ranks": "allocated"}
SEQUENTIAL = {**ALLOCATED, "sequential": True}
MEASURED = {**SEQUENTIAL, "measured": True, "strength": None}
MAIN: dict[str, dict[str, Any]] = {
    "plain": {"init": "svd"},
    "whitened": {"init": "whitened"},
    "+ allocated": ALLOCATED,
    "+ sequential": SEQUENTIAL,
    "+ pivoted": {**SEQUENTIAL, "pivoted": True},
    "+ measured": {**MEASURED, "pivoted": True},
}
"""A way with a plus has what the one before it has. From the first plus on, two metrics take the place of whitening; measured
scales go with strengths by held-out batches."""
MORE: dict[str, dict[str, Any]] = {
    "gauss_newton": {"init": "gauss_newton"},
    "measured, not pivoted": MEASURED,
    "strength by held-out batches": {**SEQUENTIAL, "strength": None},
    "all tokens alike": {**SEQUENTIAL, "weighted": 0.0},
    "second metrics": {**SEQUENTIAL, "again": True},
    "ranks after the sequential step": {**SEQUENTIAL, "ranks_again": True},
    "int8 factors": {**SEQUENTIAL, "int8": True},
}
"""From the third on each differs from "+ sequential" in one thing."""
WAYS = MAIN | MORE


def measure(subject: Subject, kappa: float, way: str, passes: dict[Any, Any]) -> dict[str, Any]:
    """One row of the table. passes: what passes over the samples gave and how long they took, kept for the next rows."""
    options = dict(WAYS[way])
    again, int8, weighted = options.pop("again", False), options.pop("int8", False), options.pop("weighted", None)
    ranks_again = options.pop("ranks_again", False)
    spent = 0.0
    if options["init"] != "svd":
        key = (options["init"], weighted)
        if key not in passes:
            start = time.process_time()
            passes[key] = _gather(subject, *key), time.process_time() - start
        gathered, spent = passes[key]
        options |= {"calibration": subject.calibration, "features": subject.features, "gathered": gathered}
    start = time.process_time()
    if ranks_again:
        small = _with_ranks_again(subject, kappa, *options["gathered"])
    else:
        small = pela_vl.compress(copy.deepcopy(subject.model), kappa, **options)
    if again:
        names = list(plan_ranks(subject.model, kappa))
        metrics = measure_metrics(merge_dense(small), names, subject.calibration, subject.features)[1]
        options["gathered"] = options["gathered"][0], metrics
        small = pela_vl.compress(copy.deepcopy(subject.model), kappa, **options)
    if int8:
        _round_to_int8(small)
    cpu = spent + time.process_time() - start
    row: dict[str, Any] = {"model": subject.name, "kappa": kappa, "way": way}
    row["parameters"] = sum(p.numel() for p in small.get_submodule(_name(subject)).parameters())
    found, expected = (subject.collect(model, subject.features) for model in (small, subject.model))
    row["err"], row["cos"] = _error(found, expected), float(F.cosine_similarity(found, expected).mean())
    row["states"] = _error(*(subject.collect(model, subject.states) for model in (small, subject.model)))
    return row | {"cpu": cpu, "MiB": peak_memory() / 2**20}


def _gather(subject: Subject, init: str, weighted: float | None) -> Any:
    names = list(plan_ranks(subject.model, 3))
    if init == "whitened":
        return calibrate(subject.model, names, subject.calibration), {}
    more = {} if weighted is None else {"weighted": weighted}
    return measure_metrics(subject.model, names, subject.calibration, subject.features, **more)


def _with_ranks_again(subject: Subject, kappa: float, statistics: Any, metrics: Any) -> torch.nn.Module:
    """The sequential step twice: the second time with ranks by the spectra of the fitted weights W* of the first."""
    model, plan = subject.model, plan_ranks(subject.model, kappa)
    scales = position_scales(model, list(plan), EARLY_PREDICTED)
    spectra = {}
    for name in plan:
        linear = model.get_submodule(name)
        roots = metric_roots(statistics[name], metrics[name], linear.bias is not None)
        spectra[name] = two_metric_spectrum(linear.weight, *roots)
    shapes = {name: in_out(model.get_submodule(name)) for name in plan}
    budget = sum(rank * sum(shapes[name]) for name, rank in plan.items())
    small = model
    for _ in range(2):
        ranks = allocate_ranks(spectra, shapes, budget, scales=scales, stay_dense=True)
        dense = [name for name in plan if name not in ranks]
        small = copy.deepcopy(model)
        reports = compress_sequentially(small, ranks, subject.calibration, metrics, dense, subject.features)
        spectra |= {report.name: report.spectrum for report in reports if report.spectrum is not None}
    return small


@torch.no_grad()
def _round_to_int8(model: torch.nn.Module) -> None:
    """Factors as they are after storage in int8, one scale a row."""
    for layer in low_rank_layers(model).values():
        for weight in (layer.up.weight, layer.down.weight):
            scale = weight.abs().amax(1, keepdim=True) / 127
            weight.copy_((weight / scale).round() * scale)


def _name(subject: Subject) -> str:
    return next(name for name, module in subject.model.named_modules() if module is subject.blocks)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
