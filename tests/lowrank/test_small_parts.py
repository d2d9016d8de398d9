"""Buffers, selections and defaults inside the room."""

import pytest
import torch
from test_all_options import INNER, Net, samples
from torch import nn

from pela_vl.lowrank import (
    LowRankLinear,
    OutputMetric,
    PlanError,
    apply,
    cut_errors,
    effect,
    factorize,
    measure_metrics,
    recipe,
    sensitivity,
)
from pela_vl.lowrank.align import align_factors, aligned
from pela_vl.lowrank.apply import install, run_all
from pela_vl.lowrank.calibration import calibration_items, eval_mode, first_input, run_item
from pela_vl.lowrank.dense import dense_layer, in_out, is_conv1d, is_dense, weight_of
from pela_vl.lowrank.effect import LayerCut, _difference
from pela_vl.lowrank.factorize import _lower_gram, singular_values
from pela_vl.lowrank.sensitivity import feature_list, model_features
from pela_vl.lowrank.storage import _distinct, _ranks_of


@pytest.mark.parametrize("chunk, flushes", [(24, 3), (25, 2), (48, 2), (49, 1)])
def test_rows_are_multiplied_when_enough_are_there(monkeypatch, chunk, flushes):
    seen, flush = [], sensitivity._Watch._flush
    monkeypatch.setattr(sensitivity, "_CHUNK", chunk)
    monkeypatch.setattr(sensitivity._Watch, "_flush", lambda self, names: seen.append(names) or flush(self, names))
    measure_metrics(Net().eval(), ["head"], samples(3))  # items of 24 rows
    assert seen == [("head",)] * flushes


def test_gradients_are_multiplied_when_they_fill_the_width():
    metric = OutputMetric(4)
    for rows, waiting in ((3, [3]), (1, []), (2, [2]), (9, [])):
        metric.add(torch.ones(rows, 4))
        assert [len(part) for part in metric._rows] == waiting
    assert float(metric.sum()[0, 0]) == 15 and metric._rows == []


@pytest.mark.parametrize("count, chosen", [(1, 1), (8, 8), (9, 5), (16, 8), (17, 6)])
def test_errors_are_measured_on_at_most_eight_items(monkeypatch, count, chosen):
    model, data = Net().eval(), samples(count)
    statistics, metrics = measure_metrics(model, INNER[:1], data)
    seen, original = [], effect.PrefixRuns
    monkeypatch.setattr(effect, "PrefixRuns", lambda m, n, run, items: seen.append(items) or original(m, n, run, items))
    cuts = cut_errors(model, {INNER[0]: 3}, statistics, metrics, data)
    step = -(-count // 8)
    assert len(seen[0]) == chosen and all(a is b for a, b in zip(seen[0], data[::step], strict=True))
    assert cuts[INNER[0]].spectrum.shape == (11,) and cuts[INNER[0]].measured > 0


def test_measured_over_predicted():
    assert LayerCut(2.0, 3.0, torch.zeros(1)).scale == 1.5 and LayerCut(0.0, 3.0, torch.zeros(1)).scale == 1.0
    ones, twos = torch.ones(2, 3), torch.full((2, 2), 2.0)
    assert _difference([ones, twos], [0 * ones, 0 * twos], [1.0, 3.0]) == 6 + 9 * 16


def test_probes_are_drawn_from_seed_nought_unless_told():
    model, data = Net().eval(), samples(2)
    found = [
        measure_metrics(model, INNER[:1], data, **more)[1][INNER[0]].matrix for more in ({}, {"seed": 0}, {"seed": 1})
    ]
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])
    statistics, metrics = measure_metrics(model, INNER[:1], data)
    assert metrics[INNER[0]].count == 2 * 6 * len(data) and metrics[INNER[0]].items == 2
    assert [len(weights) for weights in metrics[INNER[0]].weights] == [24, 24]


def test_one_input_of_a_calibration():
    def said(*args, **kwargs):
        return args, kwargs

    assert run_item(said, (1, 2)) == ((1, 2), {}) and run_item(said, [3]) == ((3,), {})
    assert run_item(said, {"a": 4}) == ((), {"a": 4}) and run_item(said, 5) == ((5,), {})
    assert run_item(said, lambda model: model is said) is True
    assert first_input((1, 2), {"input": 3}) == 1 and first_input((), {"input": 3}) == 3
    assert calibration_items(iter([1, 2])) == [1, 2]
    for wrong, words in (([], "calibration holds no samples"), (len, "calibration is a function that runs everything")):
        with pytest.raises(PlanError, match=f"^{words}"):
            calibration_items(wrong)


def test_modes_and_caches_are_put_back():
    class Config:
        use_cache = True

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).train()
    model[1].eval()
    model.config, model[0].config = Config(), model[1]  # the second has no cache
    with eval_mode(model):
        assert not any(module.training for module in model.modules()) and model.config.use_cache is False
    assert model.training and model[0].training and not model[1].training and model.config.use_cache is True
    model.config.use_cache = False
    with eval_mode(model):
        pass
    assert model.config.use_cache is False and not hasattr(model[1], "use_cache")


def test_features_of_any_shape_are_rows():
    found = feature_list([torch.ones(2, 3, 4).double(), torch.ones(2)])
    assert [part.shape for part in found] == [(2, 12), (2, 1)] and found[0].dtype == torch.float32
    assert feature_list(torch.ones(5, 2))[0].shape == (5, 2) and len(feature_list((torch.ones(1, 1),) * 3)) == 3
    for wrong in (3, None, [], [torch.ones(1), 3], torch.tensor(1.0), [torch.tensor(1.0)]):
        with pytest.raises(PlanError, match=f"not a {type(wrong).__name__}: give features=function"):
            feature_list(wrong)


def test_named_outputs_in_their_order():
    states = torch.randn(2, 5, 8)
    parts = {"last_hidden_state": states, "pooler_output": torch.ones(2, 8), "text_embeds": torch.ones(2, 3)}
    parts |= {"image_embeds": torch.ones(2, 4), "logits": torch.ones(2, 6)}

    def of(**left_out):
        return lambda model: {**parts, **left_out}

    assert model_features(None, of()) is parts["logits"]
    images, texts = model_features(None, of(logits=None))
    assert images is parts["image_embeds"] and texts is parts["text_embeds"]
    assert model_features(None, of(logits=None, image_embeds=None)) is parts["text_embeds"]
    without = {"logits": None, "image_embeds": None, "text_embeds": None}
    assert model_features(None, of(**without)) is parts["pooler_output"]
    bare = model_features(None, of(**without, pooler_output=None))
    torch.testing.assert_close(bare, nn.functional.normalize(states.mean(1), dim=1))
    mask = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 0, 0, 0]])
    for item in ({"decoder_attention_mask": mask, "attention_mask": torch.ones(2, 5)}, {"attention_mask": mask}):
        found = model_features(lambda **given: {"last_hidden_state": states}, item)
        torch.testing.assert_close(found[1], nn.functional.normalize(states[1, 0], dim=0))
        torch.testing.assert_close(found[0], nn.functional.normalize(states[0, 2:4].mean(0), dim=0))
    pair = (torch.ones(1), torch.ones(2))
    assert model_features(None, lambda model: pair) is pair


def test_dense_layers_of_both_kinds():
    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf, self.weight, self.bias = nf, nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    conv, linear = Conv1D(5, 3), nn.Linear(3, 5)
    assert is_conv1d(conv) and is_dense(conv) and is_dense(linear) and not is_conv1d(linear) and not is_dense(nn.ReLU())
    assert in_out(conv) == in_out(linear) == (3, 5)
    assert torch.equal(weight_of(conv), conv.weight.T) and weight_of(linear) is linear.weight
    for kind in (Conv1D, nn.Linear):
        for wanted in (True, False):
            made = dense_layer(kind, weight_of(linear), linear.bias, wanted)
            assert type(made) is kind and torch.equal(weight_of(made), linear.weight) and made.bias is linear.bias
            assert made.weight.requires_grad == wanted and made.weight.is_contiguous() and in_out(made) == (3, 5)
    assert dense_layer(nn.Linear, linear.weight, None, True).bias is None
    conv.weight = None
    assert not is_conv1d(conv)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_spectra_of_any_scale_and_of_nothing(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale in (1e-200, 1.0, 1e200):
        torch.testing.assert_close(singular_values(matrix * scale) / scale, torch.linalg.svdvals(matrix))
    assert singular_values(0 * matrix).tolist() == [0.0] * min(shape)


@pytest.mark.parametrize("width", [1, 191, 192, 193, 400])
def test_the_lower_triangle_of_a_gram_matrix(width):
    tall = torch.randn(5, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, exact = _lower_gram(tall), tall.T @ tall
    torch.testing.assert_close(found.tril(), exact.tril())
    assert found.shape == exact.shape and (width <= 192 or not found[:192, 192:].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_aligned_factors_are_the_nearest_rotation(dtype):
    torch.manual_seed(0)
    up, down = torch.randn(9, 4).to(dtype), torch.randn(4, 7).to(dtype)
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    target = (up.float() @ turn, turn.T @ down.float())
    new = aligned(up, down, *target)
    assert new[0].dtype == new[1].dtype == dtype
    for found, wanted in zip(new, target, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2 if dtype == torch.float16 else 1e-5)
    meta = nn.Sequential(LowRankLinear(3, 3, 2, device="meta"), LowRankLinear(3, 3, 2))
    other = nn.Sequential(LowRankLinear(3, 3, 2, device="meta"), LowRankLinear(3, 3, 2))
    before = meta[1].dense_weight().detach()
    align_factors(meta, other)  # the first has no values, the second is aligned all the same
    torch.testing.assert_close(meta[1].dense_weight().detach(), before)
    product = meta[1].up.weight.T @ other[1].up.weight + meta[1].down.weight @ other[1].down.weight.T
    torch.testing.assert_close(product, product.T, rtol=1e-4, atol=1e-5)  # as at the optimum of Procrustes' problem


def test_jobs_come_back_in_order_and_a_failure_ends_them():
    for parallel in (False, True):
        assert list(run_all([lambda k=k: k * k for k in range(9)], parallel)) == [k * k for k in range(9)]
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))
    new = nn.Tanh()
    install(model, "1.0", new)
    assert model[1][0] is new
    install(model, "0", new)
    assert model[0] is new and len(model) == 2


def test_equal_tensors_are_written_once():
    a = torch.arange(6.0).reshape(2, 3)
    state = {"a": a, "same": a, "turned": a.T, "part": a[:1], "typed": a.view(torch.int32), "e": a[:0], "f": a[:0]}
    tensors, same = _distinct(state)
    assert same == {"same": "a"} and list(tensors) == ["a", "turned", "part", "typed", "e", "f"]
    assert all(tensor.is_contiguous() for tensor in tensors.values()) and torch.equal(tensors["turned"], a.T)
    assert tensors["a"].data_ptr() != a.data_ptr()
    with pytest.raises(PlanError, match="^save: x is on the meta device and has no values$"):
        _distinct({"x": a.to("meta")})
    model = nn.Module()
    model.a, model.b, model.c = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)
    names = [
        "a.down.weight",
        "a.up.weight",
        "b.down.weight",
        "b.up.weight",
        "c.down.weight",
        "d.down.weight",
        "d.up.weight",
    ]
    assert _ranks_of({name: torch.zeros(3 if "down" in name else 9, 4) for name in names}, model) == {"a": 3}


def test_factors_name_the_method_and_keep_the_dtype():
    weight = torch.randn(6, 4, dtype=torch.float64)
    plain, auto = factorize(weight, 2), factorize(weight, 2, "auto")
    assert (
        all(torch.equal(a, b) for a, b in zip(plain[:3], auto[:3], strict=True))
        and plain.spectrum.dtype == torch.float32
    )
    assert (
        plain.up.dtype == plain.down.dtype == torch.float64 and plain.up.is_contiguous() and plain.down.is_contiguous()
    )
    zero = factorize(0 * weight, 2)
    assert zero.up.dtype == torch.float64 and zero.rel_error == 0.0 and zero.spectrum.shape == (4,)
    with pytest.raises(ValueError, match="^method must be auto, svd or gram, not 'qr'$"):
        factorize(weight, 2, "qr")


def test_layers_on_the_cpu_are_factorised_side_by_side(monkeypatch):
    asked = []
    for module in (apply, recipe):
        run = module.run_all
        monkeypatch.setattr(
            module, "run_all", lambda jobs, parallel, run=run: asked.append(parallel) or run(jobs, parallel)
        )
    model = Net()
    chosen = recipe.make_recipe(model, 2, ranks="allocated")
    apply.apply_plan(model, chosen.plan)
    apply.apply_plan(Net(), chosen.plan, "empty")
    apply.apply_plan(Net().to("meta"), chosen.plan, "empty")
    assert asked == [True, True, False, False]


def test_one_metric_alone_and_full_ranks():
    linear = nn.Linear(11, 5)
    (statistics, metrics), alone = measure_metrics(Net().eval(), ["head"], samples(2)), recipe._spectrum
    plain = alone("x", linear, None, None)
    assert torch.equal(alone("x", linear, statistics["head"], None), plain)
    assert torch.equal(alone("x", linear, None, metrics["head"]), plain)
    assert not torch.allclose(alone("x", linear, statistics["head"], metrics["head"]), plain, rtol=1e-2)
    for method in ("auto", "gram", "svd"):
        assert factorize(linear.weight, 5, method).rel_error == 0.0  # nothing is left out
    metric = OutputMetric(2)
    for rows in ([[0.5, -3.0], [1.0, 2.0]], [[40.0, 1.0], [1.0, 1.0]]):
        metric.add(torch.tensor(rows))
        assert metric._unit == 9.0  # the first rows' largest square
