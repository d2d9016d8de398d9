"""Rank allocation: one parameter budget for all layers, spent where it lowers the error most.

The uniform rule keeps the same fraction of every layer's weights. Layers differ in how much their error changes the
model's features, so an equal budget is better spent unevenly. Some layers are best left dense.
"""

import heapq
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from pela_vl.lowrank.plan import PlanError, rank_for


class _Options(NamedTuple):
    """The choices of one layer, cheapest first: ranks (None: dense), their costs in weights, the errors that they
    leave.
    """

    ranks: list[int | None]
    costs: list[int]
    errors: list[float]


def allocate_ranks(
    spectra: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]],
    budget: int,
    rank_multiple: int = 1,
    scales: Mapping[str, float] | None = None,
    stay_dense: bool = False,
    pivoted: bool = False,
) -> dict[str, int]:
    """Choose ranks that spend at most `budget` weights and minimise the sum of squared errors, to within the last few ranks.

    First the Lagrangian solution: every layer minimises error + lambda x cost, with the smallest lambda that the budget
    allows. It is found by taking steps along the layers' convex hulls in order of error removed per weight. Then the
    rest of the budget is spent greedily on the best steps that still fit. Ties go to the layer that comes first.

    Args:
        spectra: singular values of each layer by name, descending, in a unit that can be compared between layers.
        shapes: (in, out) features by name; rank r costs r (in + out).
        budget: weights that the factors of all layers may hold together.
        rank_multiple: ranks are multiples of this. Every layer gets at least one multiple, or the rank at which its
            factors are as large as its dense weights where that is less.
        scales: multipliers of the squared errors by name; 1 for a layer without one.
        stay_dense: a layer may also keep its weights, at a cost of in x out and no error. It is then absent from the
            result.
        pivoted: rank r costs r (in + out - r), as pivoted factors are stored (pivot.py).

    Returns:
        Ranks by name, of the layers that are not left dense.

    Raises:
        PlanError: If the budget does not cover the smallest choice of every layer.
    """
    options = {
        name: _options(spectrum, shapes[name], rank_multiple, (scales or {}).get(name, 1.0), stay_dense, pivoted)
        for name, spectrum in spectra.items()
    }
    chosen = dict.fromkeys(options, 0)
    left = budget - sum(option.costs[0] for option in options.values())
    if left < 0:
        raise PlanError(
            f"a budget of {budget} weights does not reach for rank {rank_multiple} in all {len(options)} layers: lower kappa"
        )
    left = _along_hulls(options, chosen, left)
    _fill(options, chosen, left)
    picked = {name: option.ranks[chosen[name]] for name, option in options.items()}
    return {name: rank for name, rank in picked.items() if rank is not None}


def _options(
    spectrum: Tensor, shape: tuple[int, int], multiple: int, scale: float, stay_dense: bool, pivoted: bool
) -> _Options:
    inputs, outputs = shape
    squares = spectrum.double() ** 2 * scale
    after = (squares.sum() - squares.cumsum(0)).clamp_min(0).tolist()  # error at rank 1, 2, ...
    if pivoted:
        most = max(1, min(shape) - 1)
    else:
        most = max(1, rank_for(inputs, outputs, 1))
    most = min(len(after), most)
    whole = list(range(multiple, most + 1, multiple)) or [most]
    costs = [rank * (inputs + outputs - (rank if pivoted else 0)) for rank in whole]
    errors = [after[rank - 1] for rank in whole]
    ranks: list[int | None] = [*whole]
    if stay_dense:
        cheaper = sum(cost < inputs * outputs for cost in costs)  # at the same cost dense weights are better
        ranks, costs, errors = ranks[:cheaper], costs[:cheaper], errors[:cheaper]
        ranks, costs, errors = [*ranks, None], [*costs, inputs * outputs], [*errors, 0.0]
    return _Options(ranks, costs, errors)


def _hull(option: _Options) -> list[int]:
    """Indices of the options on the lower convex hull of error over cost, from the cheapest on."""
    kept: list[int] = []
    for i in range(len(option.costs)):
        if kept and (option.errors[i] >= option.errors[kept[-1]] or option.costs[i] <= option.costs[kept[-1]]):
            continue  # dearer and no better
        while len(kept) > 1 and _gain(option, kept[-2], kept[-1]) < _gain(option, kept[-2], i):
            kept.pop()
        kept.append(i)
    return kept


def _gain(option: _Options, start: int, stop: int) -> float:
    """Error taken away for each weight between two options."""
    return (option.errors[start] - option.errors[stop]) / (option.costs[stop] - option.costs[start])


def _along_hulls(options: Mapping[str, _Options], chosen: dict[str, int], left: int) -> int:
    hulls = {name: _hull(option) for name, option in options.items()}
    order = {name: number for number, name in enumerate(options)}
    heap: list[tuple[float, int, str, int]] = []

    def offer(name: str, place: int) -> None:
        if place + 1 < len(hulls[name]):
            gain = _gain(options[name], hulls[name][place], hulls[name][place + 1])
            heapq.heappush(heap, (-gain, order[name], name, place + 1))

    for name in options:
        offer(name, 0)
    while heap:
        _, _, name, place = heapq.heappop(heap)
        index = hulls[name][place]
        price = options[name].costs[index] - options[name].costs[chosen[name]]
        if price > left:  # `_fill` spends the rest on steps off the hulls
            break
        left -= price
        chosen[name] = index
        offer(name, place)
    return left


def _fill(options: Mapping[str, _Options], chosen: dict[str, int], left: int) -> None:
    """Spend what is left on the best steps that fit, also those off the hull; a step that takes nothing away comes last."""

    def best(name: str) -> tuple[float, int] | None:
        option, now = options[name], chosen[name]
        fitting = [
            (_gain(option, now, i), -i)
            for i in range(now + 1, len(option.costs))
            if option.costs[now] < option.costs[i] <= option.costs[now] + left
        ]
        return max(fitting) if fitting else None

    found = {name: best(name) for name in options}
    while True:
        for name, step in found.items():  # the best step stays the best while it fits
            if step is not None and options[name].costs[-step[1]] - options[name].costs[chosen[name]] > left:
                found[name] = best(name)
        possible = {name: step for name, step in found.items() if step is not None}
        if not possible:
            return
        name = max(possible, key=lambda name: possible[name][0])
        index = -possible[name][1]
        left -= options[name].costs[index] - options[name].costs[chosen[name]]
        chosen[name] = index
        found[name] = best(name)
