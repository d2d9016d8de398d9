"""apply_plan, merge_dense and compress, on small nets and on timm and transformers models."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import pela_vl
from pela_vl.lowrank import LowRankLinear, PlanError, apply_plan, low_rank_layers, merge_dense, plan_ranks, rank_plan
from pela_vl.lowrank.apply import low_rank_layer


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Sequential(nn.Linear(48, 24, bias=False)), nn.Linear(24, 2))


def full_ranks(model: nn.Module) -> dict[str, int]:
    linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    return {name: min(m.in_features, m.out_features) for name, m in linears.items()}


def test_full_rank_keeps_the_function_and_merge_gives_it_back():
    model, x = small(), torch.randn(5, 24)
    expected, keys = model(x), list(model.state_dict())
    reports = apply_plan(model, full_ranks(model))
    assert [report.name for report in reports] == ["0", "2.0", "3"]
    assert all(report.rel_error < 1e-10 for report in reports)
    assert rank_plan(model) == full_ranks(small()) == {"0": 24, "2.0": 24, "3": 2}
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert merge_dense(model) is model
    assert list(model.state_dict()) == keys and not low_rank_layers(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_report_is_the_error_of_each_layer():
    model = small()
    weights = {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    seen = []
    reports = apply_plan(model, {"2.0": 4, "0": 6}, progress=lambda *step: seen.append(step))
    assert seen == [(1, 2, "2.0"), (2, 2, "0")]
    layers = low_rank_layers(model)
    for report in reports:
        weight = weights[report.name]
        error = (weight - layers[report.name].dense_weight().detach()).norm() / weight.norm()
        assert report.rel_error == pytest.approx(float(error), rel=1e-5)
        assert report.rank == layers[report.name].rank
        torch.testing.assert_close(report.spectrum, torch.linalg.svdvals(weight), rtol=1e-4, atol=1e-6)
        assert (report.in_features, report.out_features) == (weight.shape[1], weight.shape[0])


def test_state_of_the_layer_is_kept():
    model = small().to(torch.bfloat16).eval()
    model[0].weight.requires_grad_(False)
    bias = model[0].bias
    apply_plan(model, {"0": 6, "2.0": 6})
    first, second = model[0], model[2][0]
    assert first.up.bias is bias and second.up.bias is None
    assert not first.up.weight.requires_grad and not first.down.weight.requires_grad
    assert second.up.weight.requires_grad and second.up.weight.dtype == torch.bfloat16
    assert not any(module.training for module in model.modules())
    merge_dense(model)
    assert not model[0].weight.requires_grad and model[0].weight.dtype == torch.bfloat16 and not model[0].training


def test_factors_are_trainable_leaves():
    model = small()
    apply_plan(model, {"0": 6})
    model(torch.randn(3, 24)).sum().backward()
    assert all(p.is_leaf and p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_empty_factors_take_a_state_dict(device):
    source = small()
    apply_plan(source, {"0": 6, "2.0": 5})
    target = small().to(device)
    reports = apply_plan(target, rank_plan(source), init="empty")
    assert reports[0].rel_error is None and reports[0].spectrum is None
    assert target[0].up.weight.device.type == device
    target.load_state_dict(source.state_dict(), strict=True, assign=True)
    x = torch.randn(4, 24)
    assert torch.equal(target(x), source(x))


def test_random_state_is_untouched():
    model = small()
    state = torch.get_rng_state()
    apply_plan(model, {"0": 6})
    apply_plan(model, {"2.0": 6}, init="empty")
    assert torch.equal(state, torch.get_rng_state())


def test_threads_change_nothing_and_are_given_back():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            model = small()
            apply_plan(model, {"0": 6, "2.0": 6})
            assert torch.get_num_threads() == threads
            with pytest.raises(PlanError):
                apply_plan(model, {"3": 9})
            assert torch.get_num_threads() == threads
            results.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"0": 6, "9": 3}, "9: Sequential has no such module"),
        ({"0": 6, "1": 3}, "1 is a GELU"),
        ({"0": 6, "3": 3}, r"3: rank 3 is not a whole number in 1\.\.2"),
        ({"0": 6.0}, "0: rank 6.0"),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(plan, message):
    model = small()
    with pytest.raises(PlanError, match=message):
        apply_plan(model, plan)
    assert not low_rank_layers(model)


def test_nan_is_named_and_changes_nothing():
    model = small()
    with torch.no_grad():
        model[2][0].weight[3, 4] = torch.nan
    with pytest.raises(PlanError, match=r"^2\.0: the weight holds NaN"):
        apply_plan(model, {"0": 6, "2.0": 6})
    assert not low_rank_layers(model)


def test_refusals():
    model = small()
    with pytest.raises(PlanError, match="init"):
        apply_plan(model, {"0": 6}, init="zeros")
    with pytest.raises(PlanError, match="0: the weight is on the meta device"):
        apply_plan(small().to("meta"), {"0": 6})
    handle = model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(PlanError, match="0 has hooks"):
        apply_plan(model, {"0": 6})
    handle.remove()
    apply_plan(model, {"0": 6})
    with pytest.raises(PlanError, match="low rank already"):
        apply_plan(model, {"0": 6})
    with pytest.raises(PlanError, match="wrap it"):
        merge_dense(LowRankLinear(4, 4, 2))


def timm_vit() -> tuple[nn.Module, torch.Tensor]:
    timm = pytest.importorskip("timm")
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=7
    ), torch.randn(2, 3, 32, 32)


def timm_swin() -> tuple[nn.Module, torch.Tensor]:
    timm = pytest.importorskip("timm")
    return timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=7
    ), torch.randn(2, 3, 32, 32)


def bert() -> tuple[nn.Module, torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    return transformers.BertModel(config), torch.randint(0, 50, (2, 9))


MODELS = {
    "vit": (timm_vit, ["head", "patch_embed"]),
    "swin": (timm_swin, ["head", "patch_embed", "*.downsample"]),
    "bert": (bert, ["embeddings", "pooler"]),
}


@pytest.mark.parametrize("kind", MODELS)
def test_foreign_models(kind):
    build, exclude = MODELS[kind]
    torch.manual_seed(0)
    model, x = build()
    model.eval()
    run = (lambda m: m(x).last_hidden_state) if kind == "bert" else (lambda m: m(x))
    with torch.no_grad():
        expected = run(model)
        dense = sum(p.numel() for p in model.parameters())
        plan = plan_ranks(model, 3, exclude=exclude)
        linears = dict(model.named_modules())
        full = copy.deepcopy(model)
        apply_plan(full, {name: full_ranks(model)[name] for name in plan})
        torch.testing.assert_close(run(full), expected, rtol=1e-4, atol=1e-4)

        assert pela_vl.compress(model, kappa=3, exclude=exclude) is model
        assert rank_plan(model) == plan
        assert set(plan) == {name for name, m in linears.items() if type(m) is nn.Linear} - {
            name for name, m in linears.items() if any(name.startswith(p.strip("*.")) or p[1:] in name for p in exclude)
        }
        saved = sum(
            linears[name].weight.numel() - rank * sum(linears[name].weight.shape) for name, rank in plan.items()
        )
        assert sum(p.numel() for p in model.parameters()) == dense - saved
        assert saved >= 2 / 3 * sum(linears[name].weight.numel() for name in plan)
        out = run(model)
    assert out.shape == expected.shape and torch.isfinite(out).all()
    assert not torch.allclose(out, expected, atol=1e-3)


def test_importing_the_package_loads_no_torch():
    code = "import sys, pela_vl; assert 'torch' not in sys.modules; assert 'compress' in dir(pela_vl)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pela_vl.nonsense


@pytest.mark.parametrize("rank", [1, 3])
def test_factors_made_of_transposed_matrices_can_be_viewed_as_bytes(rank):
    """As DeepSpeed views every parameter before it is broadcast; a column [O, 1] of strides (1, O) counts as contiguous."""
    up, down = torch.randn(rank, 16).T, torch.randn(24, rank).T
    layer = low_rank_layer(nn.Linear(24, 16), up, down, None)
    for factor, given in ((layer.up.weight, up), (layer.down.weight, down)):
        assert factor.data.view(torch.uint8).numel() == 4 * given.numel() and torch.equal(factor, given)
