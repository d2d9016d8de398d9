"""Pivoted factors: the same function in fewer numbers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pela_vl
from pela_vl.cost import count_parameters, linear_conv_flops
from pela_vl.lowrank import (
    LowRankLinear,
    PivotedLinear,
    low_rank_layers,
    merge_dense,
    pivot,
    pivot_layer,
    pivoted_layers,
    rank_plan,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 40), st.booleans(), st.integers(0, 10**6), st.data())
def test_same_function_in_fewer_numbers(out, wide, bias, seed, data):
    rank = data.draw(st.integers(1, min(out - 1, wide)))
    torch.manual_seed(seed)
    layer = LowRankLinear(wide, out, rank, bias)
    form = pivot_layer(layer)
    if form is None:  # the condition bound; random factors of nearly full rank may be worse than it
        assert torch.linalg.cond(layer.dense_weight()[:, :]) > 10
        return
    x = torch.randn(3, 5, wide, dtype=torch.float64)
    expected = layer.double()(x)
    error = (form.double()(x) - expected).norm() / expected.norm()
    assert error < 2e-5
    assert sum(p.numel() for p in form.parameters()) == rank * (wide + out - rank) + bias * out
    torch.testing.assert_close(form.dense_weight(), layer.dense_weight(), rtol=1e-4, atol=1e-5)


def test_rows_are_chosen_for_their_condition():
    """The first rows are nearly alike: taking these would blow the others up."""
    torch.manual_seed(0)
    layer = LowRankLinear(30, 40, 8)
    with torch.no_grad():
        layer.up.weight[:8] = layer.up.weight[0] + 1e-6 * torch.randn(8, 8)
    form = pivot_layer(layer)
    assert form is not None and float(form.rest.weight.abs().max()) < 20


def test_what_is_not_exact_keeps_plain_factors():
    layer = LowRankLinear(20, 20, 6)
    with torch.no_grad():
        layer.down.weight[5] = layer.down.weight[4]  # a product of rank 5
    assert pivot_layer(layer) is None
    model = nn.Sequential(layer, LowRankLinear(20, 20, 6))
    assert pivot(model) == ["0"] and list(pivoted_layers(model)) == ["1"] and list(low_rank_layers(model)) == ["0"]


def test_counts_plan_and_merge():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 48)), torch.randn(7, 48)
    plain = pela_vl.compress(copy.deepcopy(model), 2)
    rank = plain[0].rank
    small = copy.deepcopy(plain)
    assert pivot(small) == [] and rank_plan(small) == rank_plan(plain)
    assert count_parameters(plain) - count_parameters(small) == 2 * rank**2
    flops = [linear_conv_flops(m, lambda m: m(x)).linear for m in (plain, small)]
    assert flops[0] - flops[1] == 2 * 7 * 2 * rank**2
    torch.testing.assert_close(small(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merge_dense(small)(x), plain(x), rtol=1e-4, atol=1e-5)


def test_higher_ranks_at_the_same_count():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 48)), [torch.randn(30, 48)] * 3
    plain = pela_vl.compress(copy.deepcopy(model), 2, init="gauss_newton", calibration=data)
    for ranks in ("uniform", "allocated"):
        small = pela_vl.compress(
            copy.deepcopy(model), 2, init="gauss_newton", calibration=data, ranks=ranks, pivoted=True
        )
        assert all(isinstance(layer, PivotedLinear) for layer in pivoted_layers(small).values())
        assert count_parameters(small) <= count_parameters(plain)
        assert sum(rank_plan(small).values()) > sum(rank_plan(plain).values())


def test_impossible_rank():
    with pytest.raises(ValueError, match=r"1\.\.5"):
        PivotedLinear(10, 6, 6)
