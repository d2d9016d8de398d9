"""One budget of parameters for all layers, spent where a rank buys most.

The uniform rule gives every layer the same share of its weights. Yet spectra differ: some layers lose little at half that
rank, others much at twice.
"""

import heapq
from collections.abc import Mapping

from torch import Tensor

from pela_vl.lowrank.plan import PlanError, rank_for


def allocate_ranks(
    spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, int]:
    """Ranks by name that spend at most `budget` weights, greedily by the squared error that each weight takes away.

    spectra: singular values of each layer, descending, in a measure that can be compared between layers. shapes: its
    (in, out) features; one rank costs their sum. Every layer gets rank 1 at least, and at most the rank at which its
    factors are as large as the dense weights. As a layer's gains only fall, the greedy choice is the best one of its cost;
    a rank that no longer fits is passed over for cheaper ones until none fits. Ties go to the layer that comes first.

    Raises PlanError when the budget does not reach for rank 1 everywhere.
    """
    costs = {name: sum(shapes[name]) for name in spectra}
    left = budget - sum(costs.values())
    if left < 0:
        raise PlanError(f"a budget of {budget} weights does not reach for rank 1 in all {len(costs)} layers: lower kappa")
    gains = {name: (spectrum.double() ** 2 / costs[name]).tolist() for name, spectrum in spectra.items()}
    largest = {name: min(len(gains[name]), max(1, rank_for(*shapes[name], 1))) for name in spectra}
    ranks = dict.fromkeys(spectra, 1)
    order = {name: number for number, name in enumerate(spectra)}
    heap = [(-gains[name][1], order[name], name) for name in ranks if largest[name] > 1]
    heapq.heapify(heap)
    while heap:
        _, _, name = heapq.heappop(heap)
        if costs[name] > left:
            continue  # and so are all further ranks of this layer
        left -= costs[name]
        ranks[name] += 1
        if ranks[name] < largest[name]:
            heapq.heappush(heap, (-gains[name][ranks[name]], order[name], name))
    return ranks
