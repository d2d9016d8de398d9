"""Whitened factors against the error that they promise, against plain SVD, and against a literal restatement."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pela_vl
from pela_vl.lowrank import (
    InputStatistics,
    PlanError,
    apply_plan,
    calibrate,
    collect_statistics,
    covariance_root,
    factorize,
    factorize_whitened,
    low_rank_layers,
    make_recipe,
    rank_plan,
)


def correlated(rows: int, width: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    """Inputs [rows, width], fp64, of unequal variances, mixed, and far from centred."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, -spread, width, dtype=torch.float64)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) * scales @ mix
    return x + 2 * torch.randn(width, generator=generator, dtype=torch.float64)


def statistics_of(x: torch.Tensor) -> InputStatistics:
    found = InputStatistics(x.shape[1])
    found.add(len(x), x.double().sum(0), x.double().T @ x.double())
    return found


def random_weight(out: int, wide: int, seed: int) -> torch.Tensor:
    return torch.randn(out, wide, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 14), st.integers(2, 14), st.integers(0, 10**6), st.booleans(), st.data())
def test_output_error_is_the_discarded_sum_and_the_least(out, wide, seed, bias, data):
    rank = data.draw(st.integers(1, min(out, wide)))
    weight, x = random_weight(out, wide, seed), correlated(200, wide, seed + 1, 2.0)
    factors = factorize_whitened(weight, rank, statistics_of(x), bias, shrinkage=0.0)
    shift = factors.bias_shift if bias else torch.zeros(out, dtype=torch.float64)
    outputs, values = x @ weight.T, factors.spectrum.double()
    scale = float((values**2).sum())

    def error(up, down, shift):
        return float((outputs - (x @ down.T @ up.T + shift)).square().sum(1).mean())

    mine = error(factors.up, factors.down, shift)
    assert mine == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-5, abs=1e-6 * scale)
    centre = outputs - outputs.mean(0) if bias else outputs
    assert scale == pytest.approx(float(centre.square().sum(1).mean()), rel=1e-4)
    assert factors.output_error == pytest.approx((mine / scale) ** 0.5, abs=1e-3)
    # Eckart-Young: no other factors of this rank do better on these inputs, a plain SVD's with the best bias included
    plain = factorize(weight, rank)
    best_shift = (weight - plain.up @ plain.down) @ x.mean(0) if bias else torch.zeros_like(shift)
    assert mine <= error(plain.up, plain.down, best_shift) + 1e-6 * scale
    generator = torch.Generator().manual_seed(seed)
    for part in ("up", "down", "shift"):
        others = {"up": factors.up, "down": factors.down, "shift": shift}
        noise = torch.randn(others[part].shape, generator=generator, dtype=torch.float64)
        others[part] = others[part] + 1e-2 * noise * others[part].abs().max()
        if bias or part != "shift":
            assert mine <= error(**others) + 1e-6 * scale


def test_beats_plain_svd_clearly_where_inputs_are_correlated():
    weight, x = random_weight(30, 40, 1), correlated(500, 40, 2)
    factors, plain = factorize_whitened(weight, 8, statistics_of(x), True), factorize(weight, 8)
    centred = x - x.mean(0)
    errors = [(centred @ (weight - f.up @ f.down).T).norm() for f in (factors, plain)]
    assert errors[0] < 0.5 * errors[1]
    assert factors.rel_error > plain.rel_error  # what it pays: the weights are further away


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variance", [1e-4, 1.0, 50.0])
def test_white_inputs_give_the_plain_svd(bias, variance):
    weight, width = random_weight(12, 9, 3), 9
    white = InputStatistics(width)
    white.add(1000, torch.zeros(width, dtype=torch.float64), 1000 * variance * torch.eye(width, dtype=torch.float64))
    factors, plain = factorize_whitened(weight, 4, white, bias), factorize(weight, 4)
    for mine, theirs in zip((factors.up, factors.down), (plain.up, plain.down), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(factors.spectrum, plain.spectrum * variance**0.5, rtol=1e-5, atol=1e-6)
    assert factors.output_error == pytest.approx(plain.rel_error) and factors.rel_error == pytest.approx(
        plain.rel_error
    )


@pytest.mark.parametrize("shrinkage", [0.0, 0.01])
def test_singular_covariance_falls_back_and_stays_exact(shrinkage):
    """Fewer rows than inputs: Cholesky has nothing to stand on without shrinkage."""
    weight, x = random_weight(10, 20, 4), correlated(6, 20, 5)
    root = covariance_root(statistics_of(x).covariance, shrinkage)
    assert (root.inverse is None) == (shrinkage > 0)
    torch.testing.assert_close(
        root.scale * root.matrix @ root.matrix.T,
        (1 - shrinkage) * statistics_of(x).covariance + shrinkage * root.scale * torch.eye(20, dtype=torch.float64),
        rtol=1e-8,
        atol=1e-8 * root.scale,
    )
    factors = factorize_whitened(weight, 5, statistics_of(x), True, shrinkage)
    assert torch.isfinite(factors.up).all() and torch.isfinite(factors.down).all()
    # six centred inputs span five directions, so rank 5 reproduces the outputs
    if shrinkage == 0:
        got = x @ factors.down.T @ factors.up.T + factors.bias_shift
        torch.testing.assert_close(got, x @ weight.T, rtol=1e-5, atol=1e-5)


def test_constant_inputs_are_exact_through_the_bias():
    weight, x = random_weight(7, 5, 6), torch.full((4, 5), 2.5, dtype=torch.float64)
    factors, plain = factorize_whitened(weight, 2, statistics_of(x), True), factorize(weight, 2)
    torch.testing.assert_close(factors.up, plain.up)
    torch.testing.assert_close(x @ factors.down.T @ factors.up.T + factors.bias_shift, x @ weight.T)


def test_bad_shrinkage_and_weights_are_refused():
    with pytest.raises(ValueError, match="shrinkage 1"):
        covariance_root(torch.eye(2, dtype=torch.float64), 1)
    with pytest.raises(ValueError, match="NaN"):
        factorize_whitened(torch.full((3, 3), torch.nan), 1, statistics_of(correlated(9, 3, 0)), True)


class Attention(nn.Module):
    """Three Linears on one tensor, one without a bias on their result; `twice` changes the tensor in place in between."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.o, self.twice = nn.Linear(8, 6, bias=False), twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1.0
        q, k = self.q(x), self.k(x)
        if self.twice:
            x += 1
        return self.o(torch.tanh(q * k + self.v(x)))


def direct(model: Attention, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The rows that each Linear is given, worked out by hand."""
    hidden = torch.tanh(model.q(x) * model.k(x) + model.v(x + model.twice))
    return {"q": x, "k": x, "v": x + model.twice, "o": hidden}


@pytest.mark.parametrize("twice", [False, True])
def test_statistics_are_those_of_all_rows(twice):
    torch.manual_seed(0)
    model = Attention(twice)
    batches = [torch.randn(4, 3, 6) + 1 for _ in range(3)]
    gathered = calibrate(model, ["q", "k", "v", "o"], batches)
    with torch.no_grad():
        rows = direct(model, torch.cat([batch.reshape(-1, 6) for batch in batches]))
    for name, x in rows.items():
        x = x.double()
        assert gathered[name].count == 36
        torch.testing.assert_close(gathered[name].mean, x.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gathered[name].covariance, torch.cov(x.T, correction=0), rtol=1e-5, atol=1e-6)


def test_inputs_go_in_as_they_are_given_and_modes_are_put_back():
    torch.manual_seed(0)
    model, x = Attention().train(), torch.randn(5, 6)
    model.o.eval()
    seen = []
    model.q.register_forward_hook(lambda module, args, out: seen.append((module.training, out.requires_grad)))
    ways = [[x], [(x,)], [[x]], [{"x": x}], lambda given: given(x)]
    first, *others = (calibrate(model, ["q", "o"], way) for way in ways)
    assert seen == [(False, False)] * 5
    assert model.training and model.q.training and not model.o.training and not model.o._forward_pre_hooks
    for other in others:
        assert torch.equal(first["o"].moment, other["o"].moment) and first["o"].count == other["o"].count == 5
    with torch.inference_mode(), collect_statistics(model, ["q", "k"]) as gathered:
        model(x)
    assert torch.equal(gathered["q"].moment, first["q"].moment) and torch.equal(gathered["k"].moment, first["q"].moment)


def test_refusals_name_the_layer_and_change_nothing():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))
    with pytest.raises(PlanError, match="^0: its calibration inputs hold NaN"):
        calibrate(model, ["0"], [torch.full((2, 6), torch.nan)])
    assert not model[0]._forward_pre_hooks
    with pytest.raises(PlanError, match="^1: no calibration sample"):
        pela_vl.compress(model, 2, init="whitened", calibration=lambda m: m[0](torch.randn(4, 6)))
    with pytest.raises(PlanError, match="needs calibration samples"):
        pela_vl.compress(model, 2, init="whitened")
    with pytest.raises(PlanError, match="by init 'whitened' and 'gauss_newton' alone"):
        pela_vl.compress(model, 2, calibration=[torch.randn(4, 6)])
    with pytest.raises(PlanError, match="ranks must be"):
        pela_vl.compress(model, 2, ranks="best")
    with pytest.raises(PlanError, match="^0: init 'whitened' needs statistics"):
        apply_plan(model, {"0": 2}, "whitened")
    with pytest.raises(PlanError, match="^0: the statistics are of inputs of width 8, not 6"):
        apply_plan(model, {"0": 2}, "whitened", statistics={"0": statistics_of(correlated(9, 8, 0))})
    assert not low_rank_layers(model)


def test_public_call_on_a_model():
    """The layers get the very factors of their statistics, corrected biases, and load by the plan alone."""
    torch.manual_seed(1)
    model, x = Attention(), torch.randn(200, 6) * torch.logspace(0, -2, 6) + 3
    dense, old_bias = copy.deepcopy(model), model.q.bias
    model.q.bias.requires_grad_(False)
    assert pela_vl.compress(model, 1.5, init="whitened", calibration=[x]) is model
    statistics = calibrate(dense, rank_plan(model), [x])
    for name, layer in low_rank_layers(model).items():
        linear = dense.get_submodule(name)
        want = factorize_whitened(linear.weight, layer.rank, statistics[name], linear.bias is not None)
        assert torch.equal(layer.up.weight, want.up) and torch.equal(layer.down.weight, want.down)
        if linear.bias is None:
            assert layer.up.bias is None
        else:
            torch.testing.assert_close(
                layer.up.bias.double(), linear.bias.double() + want.bias_shift, atol=1e-6, rtol=0
            )
            # the mean output is kept, whatever was cut
            inputs = direct(dense, x)[name]
            torch.testing.assert_close(layer(inputs).mean(0), linear(inputs).mean(0), atol=1e-5, rtol=1e-5)
    assert not model.q.up.bias.requires_grad and model.k.up.bias.requires_grad
    assert torch.equal(old_bias, dense.q.bias)  # the old Parameter is another's to keep
    again = copy.deepcopy(dense)
    apply_plan(again, rank_plan(model), "empty")
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again(x), model(x))


def test_whitened_model_is_nearer_than_a_plain_one():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)).eval()
    inputs = correlated(600, 32, 7).float() / 10
    train, test = inputs[:400], inputs[400:]
    errors = {}
    for init, samples in (("svd", None), ("whitened", [train])):
        small = pela_vl.compress(copy.deepcopy(model), 3, init=init, calibration=samples)
        errors[init] = float((small(test) - model(test)).detach().norm())
    assert errors["whitened"] < 0.6 * errors["svd"]
    recipe = make_recipe(model, 3, init="whitened", calibration=[train])
    reports = apply_plan(copy.deepcopy(model), recipe.plan, "whitened", statistics=recipe.statistics)
    assert all(0 < report.output_error < report.rel_error for report in reports)
