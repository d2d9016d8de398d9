"""What ranks are chosen from, and what is said on the way."""

import copy
import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pela_vl
from pela_vl.lowrank import (
    OutputMetric,
    allocate_ranks,
    compress,
    cut_errors,
    make_recipe,
    measure_metrics,
    plan_ranks,
    rank_plan,
    recipe,
)
from pela_vl.lowrank.allocate import _options
from pela_vl.lowrank.factorize import _gram


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.booleans(), st.booleans(), st.floats(0.1, 9))
def test_a_layers_options_are_its_ranks_their_cost_and_the_squares_they_leave(
    wide, out, multiple, stay, pivoted, scale
):
    values = torch.arange(min(wide, out), 0, -1.0)
    found = _options(values, (wide, out), multiple, scale, stay, pivoted)
    cost = {rank: rank * (wide + out - (rank if pivoted else 0)) for rank in range(1, min(wide, out) + 1)}
    most = min(wide, out) - 1 if pivoted else wide * out // (wide + out)
    ranks = [rank for rank in cost if rank % multiple == 0 and rank <= max(most, 1)] or [max(most, 1)]
    if stay:
        ranks = [rank for rank in ranks if cost[rank] < wide * out]
    assert found.ranks == [*ranks, *([None] if stay else [])]
    assert found.costs == [*(cost[rank] for rank in ranks), *([wide * out] if stay else [])]
    left = [scale * float((values[rank:] ** 2).sum()) for rank in ranks]
    assert found.errors == pytest.approx([*left, *([0.0] if stay else [])], abs=1e-9)


def test_scales_multiply_squared_errors():
    spectra = {name: torch.tensor([5.0, 2.0, 1.0]) for name in "ab"}
    shapes, budget = dict.fromkeys("ab", (6, 6)), 12 * 4
    assert allocate_ranks(spectra, shapes, budget) == {"a": 2, "b": 2}
    # 2^2 of a and 1.9 * 1^2 of b: the fourth rank is a's third only where b's second is worth less than 1
    assert allocate_ranks(spectra, shapes, budget, scales={"b": 0.24}) == {"a": 3, "b": 1}
    assert allocate_ranks(spectra, shapes, budget, scales={"b": 0.26}) == {"a": 2, "b": 2}


def test_the_gram_spectrum_is_given_up_where_a_kept_value_is_below_the_floor():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 4, generator=generator, dtype=torch.float64))[0] for n in (9, 4))
    tall = left @ torch.tensor([1.0, 1e-2, 1e-4, 1e-7], dtype=torch.float64).diag() @ right.T
    kept = [[_gram(tall, rank, floor) is not None for rank in (1, 2, 3, 4)] for floor in (0.0, 1e-6, 1e-3, 0.1, 2.0)]
    assert kept == [
        [True] * 4,
        [True, True, True, False],
        [True, True, False, False],
        [True, False, False, False],
        [False] * 4,
    ]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(11, 23), nn.Linear(23, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))).mean(1)


def samples(count: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, 11, generator=generator) for _ in range(count)]


def test_progress_counts_to_the_end_of_each_part():
    model, data, said = Net().eval(), samples(), []

    def progress(done, total, what):
        said.append((done, total, what))

    statistics, metrics = measure_metrics(model, ["first", "second"], data, progress=progress)
    assert said == [(k, 5, "metrics") for k in range(1, 6)]
    said.clear()
    cut_errors(model, {"first": 2, "second": 1}, statistics, metrics, data, progress=progress)
    assert said == [(1, 2, "measured errors"), (2, 2, "measured errors")]
    said.clear()
    options = {"calibration": data, "progress": progress, "init": "gauss_newton", "ranks": "allocated"}
    make_recipe(model, 2, measured=True, **options)
    assert [what for _, _, what in said] == ["metrics"] * 5 + ["measured errors"] * 2
    said.clear()
    make_recipe(model, 2, **options)
    assert said[5:] == [(1, 2, "spectra"), (2, 2, "spectra")]
    said.clear()
    compress(copy.deepcopy(model), 2, **options)
    assert [done for done, _, _ in said[:5]] == [1, 2, 3, 4, 5] and said[-1][:2] == (2, 2)


def test_tokens_weigh_by_their_gradient_whatever_its_unit():
    model, data = Net().eval(), samples()
    plain, _ = measure_metrics(model, ["first", "second"], data)
    scaled, _ = measure_metrics(model, ["first", "second"], data, features=lambda m, x: 300 * m(x))
    one, _ = measure_metrics(model, ["first"], data[:1])
    assert one["first"].count == pytest.approx(24)  # weights of the first item are 1 on average
    for name in plain:
        assert plain[name].count == pytest.approx(scaled[name].count, rel=1e-4)
        torch.testing.assert_close(plain[name].moment, scaled[name].moment, rtol=1e-3, atol=1e-4)
    equal, _ = measure_metrics(model, ["first"], data, weighted=0.0)
    rows = torch.cat(data).reshape(-1, 11).double()
    assert equal["first"].count == pytest.approx(len(rows))
    torch.testing.assert_close(equal["first"].moment, rows.T @ rows, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(plain["first"].uncentred, equal["first"].uncentred, rtol=1e-3)


def test_signs_come_from_the_generator_that_is_given():
    rows, found = torch.randn(1200, 600), []
    for seed in (3, 3, 4):
        metric, generator = OutputMetric(600, expected=24), torch.Generator().manual_seed(seed)
        before = torch.get_rng_state()
        metric.add(rows, generator)
        assert torch.equal(torch.get_rng_state(), before)
        assert metric.mixed == 3
        found.append(metric.sum())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_what_is_not_said_is_the_paper_and_both_doors_agree():
    """Every default of `compress` is that of `make_recipe`, and of `pela_vl.compress`."""
    model = nn.Sequential(nn.Linear(10, 35), nn.ReLU(), nn.Linear(35, 17))
    plan = plan_ranks(model, 3)
    assert any(rank % 2 for rank in plan.values())
    for door in (compress, pela_vl.compress):
        assert rank_plan(door(copy.deepcopy(model))) == plan
    assert make_recipe(model).plan == plan and make_recipe(model).init == "svd"
    ours, others = (inspect.signature(door).parameters for door in (compress, make_recipe))
    for name in ours.keys() & others.keys():
        assert ours[name].default == others[name].default, name


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e18])
def test_the_spectrum_of_a_weight_is_exact_and_has_unit_norm(scale):
    linear = nn.Linear(12, 30)
    with torch.no_grad():
        linear.weight.mul_(scale)
    found = recipe._spectrum("x", linear, None, None)
    exact = torch.linalg.svdvals(linear.weight.detach().double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact / exact.norm(), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        linear.weight.zero_()
    assert not recipe._spectrum("x", linear, None, None).any()
