"""allocate_ranks against every other way to spend the budget; allocated plans of models keep to it."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pela_vl
from pela_vl.lowrank import PlanError, allocate_ranks, make_recipe, plan_ranks, rank_plan


def left_out(spectra: dict[str, list[float]], ranks: dict[str, int]) -> float:
    return sum(sum(value**2 for value in spectra[name][rank:]) for name, rank in ranks.items())


@st.composite
def layers(draw, equal_costs: bool):
    """Up to three layers: spectra and (in, out) shapes."""
    shapes = {}
    for number in range(draw(st.integers(1, 3))):
        shapes[f"l{number}"] = (6, 6) if equal_costs else (draw(st.integers(2, 7)), draw(st.integers(2, 7)))
    value = st.floats(0, 10, allow_subnormal=False)
    spectra = {
        n: sorted(draw(st.lists(value, min_size=min(s), max_size=min(s))), reverse=True) for n, s in shapes.items()
    }
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in spectra.items()}, shapes


def most(shape: tuple[int, int]) -> int:
    """The largest rank whose factors are no larger than the matrix."""
    return max(1, shape[0] * shape[1] // sum(shape))


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.data())
def test_never_over_budget_and_the_best_of_its_cost(equal_costs, data):
    spectra, shapes = data.draw(layers(equal_costs))
    costs = {name: sum(shape) for name, shape in shapes.items()}
    budget = sum(costs.values()) + data.draw(st.integers(0, 60))
    ranks = allocate_ranks(spectra, shapes, budget)
    spent = sum(rank * costs[name] for name, rank in ranks.items())
    assert list(ranks) == list(spectra) and spent <= budget
    assert all(1 <= rank <= most(shapes[name]) for name, rank in ranks.items())
    # nothing that still fits is left on the table
    assert all(ranks[name] == most(shapes[name]) or spent + costs[name] > budget for name in ranks)
    if equal_costs:  # then greedy is optimal; otherwise a knapsack may beat it in its last few ranks
        choices = product(*(range(1, most(shapes[name]) + 1) for name in spectra))
        ways = (dict(zip(spectra, choice, strict=True)) for choice in choices)
        values = {name: spectrum.tolist() for name, spectrum in spectra.items()}
        best = min(left_out(values, way) for way in ways if sum(r * costs[n] for n, r in way.items()) <= budget)
        assert left_out(values, ranks) == pytest.approx(best, abs=1e-9)


def test_gain_per_weight_decides():
    spectra = {"small": torch.tensor([9.0, 3.0, 3.0]), "large": torch.tensor([9.0, 4.0, 4.0])}
    shapes = {"small": (6, 6), "large": (30, 30)}
    # 3^2/12 buys more than 4^2/60, so the small layer is served first and the large one gets what is left
    assert allocate_ranks(spectra, shapes, 72 + 24) == {"small": 3, "large": 1}
    assert allocate_ranks(spectra, shapes, 72 + 24 + 60) == {"small": 3, "large": 2}
    assert allocate_ranks(spectra, shapes, 72 + 60) == {"small": 3, "large": 1}


def test_ranks_come_in_multiples():
    shapes = {"a": (40, 40), "b": (40, 60), "tiny": (3, 9)}
    spectra = {name: torch.linspace(5, 0, min(shape)) * (1 + len(name)) for name, shape in shapes.items()}
    ranks = allocate_ranks(spectra, shapes, 3000, rank_multiple=8)
    assert ranks["a"] % 8 == ranks["b"] % 8 == 0 and ranks["tiny"] == 2  # 2 * 12 weights of its 27
    spent = sum(rank * sum(shapes[name]) for name, rank in ranks.items())
    assert 3000 - 8 * 80 < spent <= 3000


def test_too_small_a_budget_is_refused():
    with pytest.raises(PlanError, match="budget of 11 weights"):
        allocate_ranks({"a": torch.ones(3)}, {"a": (6, 6)}, 11)


def test_square_layers_may_stay_dense_too():
    """Their rank in / 2 costs as much as the dense weights and leaves an error."""
    shapes = {"square": (6, 6), "wide": (4, 12)}
    spectra = {"square": torch.ones(6), "wide": torch.tensor([1.0, 0.1, 0.01, 0.0])}
    assert allocate_ranks(spectra, shapes, 36 + 16, stay_dense=True) == {"wide": 1}
    assert allocate_ranks(spectra, shapes, 36 + 15, stay_dense=True) == {"square": 2, "wide": 1}
    assert allocate_ranks(spectra, shapes, 36 + 48, stay_dense=True) == {}
    # an effect that is scaled up moves the budget
    assert allocate_ranks(spectra, shapes, 48 + 12, scales={"wide": 1e6}, stay_dense=True) == {"square": 1}


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.data())
def test_staying_dense_never_costs_error_or_budget(pivoted, data):
    spectra, shapes = data.draw(layers(False))
    budget = sum(map(sum, shapes.values())) + data.draw(st.integers(0, 60))
    for stay_dense in (False, True):
        ranks = allocate_ranks(spectra, shapes, budget, 1, None, stay_dense, pivoted)
        spent = sum(r * (sum(shapes[n]) - (r if pivoted else 0)) for n, r in ranks.items())
        spent += sum(shapes[n][0] * shapes[n][1] for n in shapes if n not in ranks)
        assert stay_dense or list(ranks) == list(spectra)
        # one rank of a thin matrix may cost more than the matrix
        assert spent <= budget


@pytest.mark.parametrize("whitened", [False, True])
def test_a_models_plan_spends_what_the_uniform_one_does(whitened):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 40, bias=False), nn.Linear(40, 20), nn.Linear(20, 20))
    with torch.no_grad():  # one layer of rank 2: more would be wasted on it
        model[1].weight.copy_(torch.randn(40, 2) @ torch.randn(2, 30))
    x = torch.randn(300, 20)
    options = {"init": "whitened", "calibration": [x]} if whitened else {}
    uniform = plan_ranks(model, 2, exclude=["3"])
    recipe = make_recipe(model, 2, exclude=["3"], ranks="allocated", **options)
    plan, shapes = recipe.plan, {name: model.get_submodule(name).weight.shape for name in uniform}

    def cost(plan, dense=()):
        spent = sum(rank * sum(shapes[name]) for name, rank in plan.items())
        return spent + sum(shapes[name].numel() for name in dense)

    assert {*plan, *recipe.dense} == set(uniform) and bool(recipe.dense) == whitened and plan["1"] == 2
    assert "0" in recipe.dense or plan["0"] > uniform["0"]
    assert cost(uniform) - min(map(sum, shapes.values())) < cost(plan, recipe.dense) <= cost(uniform)
    small = pela_vl.compress(model, 2, exclude=["3"], ranks="allocated", **options)
    assert rank_plan(small) == plan


def test_weights_without_values_are_refused():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20))
    with pytest.raises(PlanError, match="0: the weight is on the meta device"):
        make_recipe(model.to("meta"), 2, ranks="allocated")
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(PlanError, match="1: the weight holds NaN"):
        make_recipe(model, 2, ranks="allocated")
