"""Factors in two metrics: the error that they predict is the one that is measured, and no other factors have a smaller one."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pela_vl
from pela_vl.lowrank import (
    OutputMetric,
    PlanError,
    apply_plan,
    cut_errors,
    factorize,
    factorize_two_metrics,
    factorize_whitened,
    low_rank_layers,
    make_recipe,
    measure_metrics,
    metric_roots,
    model_features,
    plan_ranks,
    rank_plan,
)
from pela_vl.lowrank.recipe import position_scales
from pela_vl.lowrank.whiten import covariance_root


def metric(width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return mix @ torch.diag(torch.logspace(0, -2, width, dtype=torch.float64)) @ mix.T


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6), st.data())
def test_the_discarded_sum_is_the_weighted_error_and_the_least(out, wide, seed, data):
    rank = data.draw(st.integers(1, min(out, wide)))
    weight = torch.randn(out, wide, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs, outputs = metric(wide, seed + 1), metric(out, seed + 2)
    factors = factorize_two_metrics(weight, rank, covariance_root(inputs, 0.0), covariance_root(outputs, 0.0))

    def error(up, down):
        left = weight - up @ down
        return float(torch.trace(outputs @ left @ inputs @ left.T))

    scale = error(torch.zeros(out, 1).double(), torch.zeros(1, wide).double())
    own = error(factors.up, factors.down)
    assert own == pytest.approx(factors.predicted_error, rel=1e-5, abs=1e-6 * scale)
    plain = factorize(weight, rank)
    assert own <= error(plain.up, plain.down) + 1e-6 * scale
    generator = torch.Generator().manual_seed(seed)
    for part in (0, 1):
        others = [factors.up, factors.down]
        noise = torch.randn(others[part].shape, generator=generator, dtype=torch.float64)
        others[part] = others[part] + 1e-2 * noise * others[part].abs().max()
        assert own <= error(*others) + 1e-6 * scale


class Net(nn.Module):
    """Two layers on each token, a mean over the tokens, a head of which only one output counts for `features`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(12, 20), nn.Linear(20, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))).mean(1))


def samples(batches: int = 12, tokens: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(12, 12, generator=generator) * torch.logspace(0, -1.5, 12)
    return [torch.randn(16, tokens, 12, generator=generator) @ mix + 0.5 for _ in range(batches)]


def test_the_prediction_is_the_measured_error_of_small_cuts():
    """One layer cut alone: to first order, and as far as tokens are independent."""
    model, data = Net().eval(), samples(40)
    names = ["first", "second", "head"]
    statistics, metrics = measure_metrics(model, names, data)
    plan = {"first": 4, "second": 2, "head": 2}
    cuts = cut_errors(model, plan, statistics, metrics, data)
    for name, cut in cuts.items():
        assert 0.5 < cut.measured / cut.predicted < 2, name
        small = copy.deepcopy(model)
        (report,) = apply_plan(small, {name: plan[name]}, "gauss_newton", None, statistics, metrics)
        assert report.predicted_error == pytest.approx(cut.predicted, rel=1e-6)
        some = data[:: -(-len(data) // 8)]
        with torch.no_grad():
            found = sum(float((small(x) - model(x)).square().sum()) for x in some) / (16 * len(some))
        assert found == pytest.approx(cut.measured, rel=1e-3)


def test_the_metric_of_a_linear_model_is_known():
    """f = A y of one token: G = A^T A, here by many draws of v."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4, bias=False))
    data = [torch.randn(400, 5) for _ in range(10)]
    _, metrics = measure_metrics(model, ["0"], data)
    weight = model[1].weight.detach().double()
    expected = weight.T @ weight
    assert metrics["0"].count == 2 * 4000
    assert float((metrics["0"].matrix - expected).norm() / expected.norm()) < 0.05


def test_features_that_count_are_kept_best():
    model, data = Net().eval(), samples()
    errors = {}
    for init, options in (("whitened", {}), ("gauss_newton", {"features": lambda m, x: m(x)[:, :1]})):
        small = pela_vl.compress(copy.deepcopy(model), 3, exclude=["head"], init=init, calibration=data, **options)
        with torch.no_grad():
            errors[init] = sum(float((small(x) - model(x))[:, 0].square().sum()) for x in data)
    assert errors["gauss_newton"] < 0.7 * errors["whitened"]


def test_equal_metrics_give_known_factors():
    torch.manual_seed(0)
    weight, identity = torch.randn(9, 7, dtype=torch.float64), torch.eye(9, dtype=torch.float64)
    plain = factorize(weight, 3)
    own = factorize_two_metrics(weight, 3, covariance_root(identity[:7, :7]), covariance_root(identity))
    torch.testing.assert_close(own.up @ own.down, plain.up @ plain.down)
    model = nn.Sequential(nn.Linear(7, 9)).double()
    statistics, metrics = measure_metrics(model, ["0"], [torch.randn(50, 7, dtype=torch.float64)])
    metrics["0"]._moment, metrics["0"]._rows = identity, []
    roots = metric_roots(statistics["0"], metrics["0"], True)
    whitened = factorize_whitened(weight, 3, statistics["0"], True)
    own = factorize_two_metrics(weight, 3, *roots)
    torch.testing.assert_close(own.up @ own.down, whitened.up @ whitened.down)


def test_the_model_is_left_as_it_was():
    model = Net().train()
    model.second.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    measure_metrics(model, ["first", "second"], samples(2))
    assert model.training and all(p.grad is None for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["second.weight"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.first._forward_hooks and not model.first._forward_pre_hooks


def test_ranks_by_effect_leave_dense_what_matters():
    model, data = Net().eval(), samples()
    with torch.no_grad():
        model.second.weight.mul_(0.01)  # and what goes in there hardly counts
        model.head.weight.mul_(100)
    recipe = make_recipe(model, 2, init="gauss_newton", ranks="allocated", calibration=data, measured=True)
    assert set(recipe.plan) | set(recipe.dense) == {"first", "second", "head"} and recipe.dense
    shapes = {name: (m.in_features, m.out_features) for name, m in model.named_children()}
    cost = sum(rank * sum(shapes[name]) for name, rank in recipe.plan.items())
    cost += sum(shapes[name][0] * shapes[name][1] for name in recipe.dense)
    uniform = pela_vl.compress(copy.deepcopy(model), 2)
    assert cost <= sum(rank * sum(shapes[name]) for name, rank in rank_plan(uniform).items())
    small = pela_vl.compress(
        copy.deepcopy(model), 2, init="gauss_newton", ranks="allocated", calibration=data, measured=True
    )
    assert rank_plan(small) == recipe.plan
    assert all(type(small.get_submodule(name)) is nn.Linear for name in recipe.dense)
    other = pela_vl.compress(copy.deepcopy(model), 2, init="gauss_newton", calibration=data)
    with torch.no_grad():
        errors = [sum(float((m(x) - model(x)).square().sum()) for x in samples(20)) for m in (small, other)]
    assert errors[0] < errors[1]


def test_default_features():
    x = torch.randn(3, 4, 12)
    assert model_features(Net(), x).shape == (3, 3)
    states = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = model_features(lambda **given: {"last_hidden_state": states}, {"attention_mask": mask})
    torch.testing.assert_close(found[0], nn.functional.normalize(states[0, :3].mean(0), dim=0))
    item = {"attention_mask": torch.ones(2, 9), "decoder_attention_mask": mask}  # the first is the encoder's
    torch.testing.assert_close(model_features(lambda **given: {"last_hidden_state": states}, item), found)
    assert (
        model_features(lambda **given: {"last_hidden_state": states}, {"attention_mask": torch.ones(2, 9)})
        .isfinite()
        .all()
    )
    given = {"image_embeds": torch.ones(2, 3), "text_embeds": torch.ones(2, 4), "last_hidden_state": states}
    assert [part.shape[1] for part in model_features(lambda model: given, lambda model: given)] == [3, 4]
    with pytest.raises(PlanError, match="features: no vector is found in a dict"):
        model_features(Net(), lambda model: {"loss": 1})


def test_refusals():
    model, data = Net(), samples(2)
    for changes, message in (
        ({"features": lambda m, x: 3}, "features must return a tensor"),
        ({"features": lambda m, x: m(x).detach()}, "depend on none"),
        ({"features": lambda m, x: m(x) * torch.nan}, "item 0 hold NaN"),
        ({"calibration": lambda m: m(data[0])}, "runs everything at once"),
        ({"calibration": []}, "no samples"),
        ({"measured": True}, "measured scales ranks 'allocated'"),
    ):
        with pytest.raises(PlanError, match=message):
            pela_vl.compress(model, 2, init="gauss_newton", **{"calibration": data, **changes})
        assert not low_rank_layers(model) and all(p.requires_grad for p in model.parameters())
    with pytest.raises(PlanError, match="sequential works on"):
        pela_vl.compress(model, 2, init="whitened", calibration=data, sequential=True)


class Counted(OutputMetric):
    """Counts the rows whose products are formed."""

    formed = 0

    def _flush(self) -> None:
        self.formed += sum(len(rows) for rows in self._rows)
        super()._flush()


def test_gradients_added_up_under_random_signs_give_the_same_metric():
    """Of a wide output whose rows are many, also where the first items are small; a narrow one keeps its rows apart."""
    torch.manual_seed(0)
    spread = torch.randn(600, 600) * torch.logspace(0, -2, 600)
    rows, whole = torch.randn(24000, 600) @ spread.T, OutputMetric(600)
    for part in rows.split(2000):
        whole.add(part)
    whole.count = 1
    for sizes in ([2000] * 12, [100, 1000, 1900, *[3000] * 7]):
        mixed, generator = Counted(600, expected=len(sizes)), torch.Generator().manual_seed(1)
        for part in rows.split(sizes):
            for half in part.chunk(2):  # two probes
                mixed.add(half, generator)
            mixed.items += 1
        mixed.count = 1
        assert float((mixed.matrix - whole.matrix).norm() / whole.matrix.norm()) < 0.1
        assert float(mixed.matrix.trace() / whole.matrix.trace()) == pytest.approx(1, abs=0.02)
        assert 9600 <= mixed.formed < 19000  # 16 a dimension, and not all 24,000
    narrow = Counted(8, expected=100)
    narrow.add(torch.randn(1000, 8))
    assert len(narrow.matrix) == 8 and narrow.formed == 1000


def test_layers_of_one_input_share_its_statistics_as_long_as_they_do():
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
            self.apart = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q(x) + self.k(x) + self.v(x.flip(0) * 2 if self.apart else x)

    def item(apart: bool):
        x = torch.randn(2100, 6)  # as many rows as are kept at a time

        def run(model):
            model.apart = apart
            return model(x)

        return x, run

    torch.manual_seed(0)
    model, (first, one), (second, two) = Three(), item(False), item(True)
    together, _ = measure_metrics(model, ["q", "k", "v"], [one, one], weighted=0.0)
    assert together["q"] is together["k"] is together["v"]
    found, _ = measure_metrics(model, ["q", "k", "v"], [one, two], weighted=0.0)
    assert found["q"].count == found["v"].count == 4200
    torch.testing.assert_close(found["k"].total.float(), (first.sum(0) + second.sum(0)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["v"].total.float(), (first.sum(0) + 2 * second.sum(0)), rtol=1e-4, atol=1e-3)


def test_what_was_gathered_serves_another_kappa():
    model, data = Net().eval(), samples()
    names = list(plan_ranks(model, 3, exclude=["head"]))
    gathered = measure_metrics(model, names, data)
    options = {"exclude": ["head"], "init": "gauss_newton", "ranks": "allocated", "calibration": data}
    for kappa in (2, 3):
        own = pela_vl.compress(copy.deepcopy(model), kappa, **options)
        again = pela_vl.compress(copy.deepcopy(model), kappa, gathered=gathered, **options)
        assert rank_plan(own) == rank_plan(again)
        torch.testing.assert_close(own.state_dict(), again.state_dict())


def test_errors_of_early_blocks_count_less_where_later_layers_mend_them():
    towers = nn.ModuleDict({name: nn.ModuleList(Net() for _ in range(3)) for name in ("image", "text")})
    towers["head"] = nn.Linear(6, 6)
    names = [name for name, module in towers.named_modules() if isinstance(module, nn.Linear)]
    scales = position_scales(towers, names)
    assert scales.keys() == set(names) and scales["head"] == 1
    for tower in ("image", "text"):
        found = [{scales[name] for name in names if name.startswith(f"{tower}.{place}.")} for place in range(3)]
        assert [round(value, 6) for (value,) in found] == [0.2, round(0.2**0.5, 6), 1]
