"""One budget of parameters for all layers, spent where a rank buys most.

The uniform rule gives every layer the same share of its weights. Yet spectra differ: some layers lose little at half that
rank, others much at twice.
"""

import heapq
from collections.abc import Mapping

from torch import Tensor

from pela_vl.lowrank.plan import PlanError, rank_for


def allocate_ranks(
    spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int, rank_multiple: int = 1
) -> dict[str, int]:
    """Ranks by name that spend at most `budget` weights, greedily by the squared error that each weight takes away.

    spectra: singular values of each layer, descending, in a measure that can be compared between layers. shapes: its
    (in, out) features; one rank costs their sum. Ranks come in steps of `rank_multiple`; every layer gets one step at
    least, and at most the rank at which its factors are as large as the dense weights (which alone may be no multiple,
    where it is less than one step). As a layer's gains only fall, the greedy choice is the best one of its cost; a step
    that no longer fits is passed over for cheaper ones until none fits. Ties go to the layer that comes first.

    Raises PlanError when the budget does not reach for one step everywhere.
    """
    costs = {name: sum(shapes[name]) for name in spectra}
    errors = {name: spectrum.double() ** 2 for name, spectrum in spectra.items()}
    most = {name: min(len(errors[name]), max(1, rank_for(*shapes[name], 1))) for name in spectra}
    ranks = {name: min(rank_multiple, most[name]) for name in spectra}
    left = budget - sum(rank * costs[name] for name, rank in ranks.items())
    if left < 0:
        raise PlanError(
            f"a budget of {budget} weights does not reach for rank {rank_multiple} in all {len(costs)} layers: lower kappa"
        )
    heap: list[tuple[float, int, str]] = []
    order = {name: number for number, name in enumerate(spectra)}

    def offer(name: str) -> None:
        rank = ranks[name]
        if rank + rank_multiple <= most[name]:
            gain = float(errors[name][rank : rank + rank_multiple].sum())
            heapq.heappush(heap, (-gain / costs[name], order[name], name))

    for name in ranks:
        offer(name)
    while heap:
        _, _, name = heapq.heappop(heap)
        price = rank_multiple * costs[name]
        if price <= left:  # else all further steps of this layer are too dear as well
            left -= price
            ranks[name] += rank_multiple
            offer(name)
    return ranks
