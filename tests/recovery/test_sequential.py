"""The sequential step against a literal restatement, on every kind of block it knows, and beside closed-form factors."""

import copy
from weakref import ref

import pytest
import timm
import torch
from tiny_albef import tiny_albef, tiny_batch
from torch import nn

import pela_vl
from pela_vl.cost import count_parameters
from pela_vl.lowrank import PlanError, low_rank_layers, make_recipe, measure_metrics, rank_plan, recipe
from pela_vl.lowrank.calibration import run_item
from pela_vl.recovery.lockstep import SMALL, Lockstep
from pela_vl.recovery.sequential import _Regression, compress_sequentially, held_out_strength
from pela_vl.recovery.streams import find_writers

OPTIONS = {"init": "gauss_newton", "ranks": "allocated"}


def images(count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(4, 3, 32, 32, generator=generator)
    weights = torch.randn(count, 8, 4, generator=generator)
    return [
        torch.einsum("bk,kchw->bchw", w, base) + 0.2 * torch.randn(8, 3, 32, 32, generator=generator) for w in weights
    ]


def vit(**changes) -> nn.Module:
    """Weights large enough for its blocks to matter beside the stream."""
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=7,
        global_pool="avg",
        **changes,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "blocks" in name:
                parameter.mul_(6)
    return model


def swin() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=7
    ).eval()


def error(model: nn.Module, dense: nn.Module, items: list) -> float:
    with torch.no_grad():
        pairs = [(model(**x), dense(**x)) if isinstance(x, dict) else (model(x), dense(x)) for x in items]
    pairs = [(a, b) if isinstance(a, torch.Tensor) else (a[0], b[0]) for a, b in pairs]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)) ** 0.5


def test_first_layers_of_a_block_by_hand():
    """A post-norm block's first layers see dense inputs: W* = W. Its output layer: the literal formula."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).double().eval()
    items = [{"input_ids": torch.randint(0, 50, (6, length))} for length in (5, 8, 7, 7)]
    root = "encoder.layer.0."
    plan = {root + "attention.self.value": 9, root + "attention.output.dense": 7}
    small = copy.deepcopy(model)
    compress_sequentially(small, plan, items, None, (), strength=0.5)
    seen = {}

    def run(net, key):
        layer = net.get_submodule(root + "attention.output.dense")
        handles = [
            layer.register_forward_pre_hook(lambda m, a: seen.setdefault(key + "x", []).append(a[0].flatten(0, 1))),
            layer.register_forward_hook(lambda m, a, o: seen.setdefault(key + "y", []).append(o.flatten(0, 1))),
        ]
        for item in items:
            net(**item)
        for handle in handles:
            handle.remove()

    with torch.no_grad():
        run(model, "dense"), run(small, "small")
        x, y = torch.cat(seen["smallx"]), torch.cat(seen["densey"])  # the stream is the same: the block's first branch
        layer = model.get_submodule(root + "attention.output.dense")
        weight, bias = layer.weight, layer.bias
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / len(x)
        ridge = 0.01 * covariance.diagonal().mean() * torch.eye(len(mean)).double()
        rest = y - x @ weight.T - bias
        target = weight + 0.5 * (rest.T @ (x - mean) / len(x)) @ torch.linalg.inv(covariance + ridge)
        shrunk = 0.99 * covariance + ridge
        root_c = torch.linalg.cholesky(shrunk)
        u, s, vh = torch.linalg.svd(target @ root_c)
        product = u[:, :7] * s[:7] @ vh[:7] @ torch.linalg.inv(root_c)
        own = small.get_submodule(root + "attention.output.dense")
        torch.testing.assert_close(own.dense_weight(), product, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.cat(seen["smally"]).mean(0), y.mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("build", [vit, lambda: vit(init_values=0.3), swin], ids=["vit", "vit with LayerScale", "swin"])
def test_beats_closed_form_factors(build):
    """On samples that did not calibrate, with the same number of weights at most."""
    dense, items = build(), images(24)
    known, fresh = items[:16], items[16:]
    models = [
        pela_vl.compress(copy.deepcopy(dense), 3, exclude=["head"], calibration=known, sequential=flag, **OPTIONS)
        for flag in (False, True)
    ]
    # the sequential step's ranks count early errors less
    assert count_parameters(models[1]) <= 1.005 * count_parameters(models[0])
    assert error(models[1], dense, fresh) < 0.85 * error(models[0], dense, fresh)


def test_errors_of_early_blocks_count_less_before_the_sequential_step(monkeypatch):
    """Measured ones less than predicted ones, which are too small there already; without the step all alike."""
    seen, scales = [], recipe.position_scales
    monkeypatch.setattr(recipe, "position_scales", lambda *given: seen.append(given[2]) or scales(*given))
    options = OPTIONS | {"exclude": ["head"], "calibration": images(4)}
    plans = [
        make_recipe(vit(), 3, measured=measured, sequential=sequential, **options).plan
        for measured in (False, True)
        for sequential in (False, True)
    ]
    assert seen == [0.5, 0.2] and plans[0] != plans[1] and plans[2] != plans[3]


def test_writers_and_windows_of_swin():
    """All layers that write to the stream are found, and Swin's stream is cut into windows as its attention's input is."""
    dense = swin()
    names = [n for n, m in dense.named_modules() if isinstance(m, nn.Linear) and n != "head" and "head." not in n]
    writers = find_writers(dense, names)
    assert set(writers) == {n for n in names if n.endswith(("attn.proj", "mlp.fc2"))}
    assert [w.window is not None for w in writers.values()] == [n.endswith("attn.proj") for n in writers]
    x, seen = torch.randn(2, 16, 16, 24), []
    block = dense.layers[0].blocks[1]  # its windows are shifted
    assert sum(block.shift_size)
    handle = block.attn.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        block.norm1 = nn.Identity()
        block(x)
    handle.remove()
    from pela_vl.recovery.streams import _windows

    torch.testing.assert_close(_windows(block, x), seen[0])


def test_albef_with_cross_attention():
    dense = tiny_albef(dropout=0.0).eval()

    def item(seed):
        batch = tiny_batch(6, seed)
        masked = batch.masked_ids

        def run(model):
            ids = torch.cat([batch.ids, masked])
            mask = batch.mask.repeat(2, 1)
            image = model.visual_encoder(batch.images).tokens
            text = model.text_encoder.encode(ids, mask).tokens
            pairs = [
                (k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1)) for k, v in model.text_encoder.image_keys_values(image)
            ]
            fused = model.text_encoder.fuse(text, mask, pairs).tokens
            return [
                model.image_feature(image),
                model.text_feature(text[:6]),
                model.itm_head(fused[:6, 0]),
                fused[6:] * batch.mask[..., None],
            ]

        return run

    items = [item(seed) for seed in range(6)]
    exclude = ["vision_proj", "text_proj", "itm_head", "mlm_head"]
    plain = pela_vl.compress(copy.deepcopy(dense), 2, exclude=exclude, calibration=items, **OPTIONS)
    small = pela_vl.compress(
        copy.deepcopy(dense), 2, exclude=exclude, calibration=items, sequential=True, strength=1.0, **OPTIONS
    )
    assert any("crossattention.self" in name for name in rank_plan(small))
    totals = []
    with torch.no_grad():
        for model in (small, plain):
            found = [(a, b) for run in items for a, b in zip(run(model), run(dense), strict=True)]
            totals.append(sum(float((a - b).square().sum() / b.square().sum()) for a, b in found))
    assert totals[0] < totals[1]


def test_threads_change_next_to_nothing_and_are_given_back():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            small = pela_vl.compress(vit(), 3, exclude=["head"], calibration=images(4), sequential=True, **OPTIONS)
            assert torch.get_num_threads() == threads
            results.append(small(images(1)[0]))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_refusals_leave_the_model_alone():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    items = [torch.randn(4, 16)]
    with pytest.raises(PlanError, match="no blocks of a known kind.*without sequential"):
        pela_vl.compress(model, 2, calibration=items, sequential=True, **OPTIONS)
    dense = vit()
    with pytest.raises(PlanError, match="strength"):
        compress_sequentially(dense, {"blocks.0.attn.proj": 3}, images(2), strength=2)

    def broken(model, item):
        model.patch_embed(item)
        model.blocks[0].attn(torch.randn(2, 5, 48))
        raise RuntimeError("a worker's own error")

    with pytest.raises(RuntimeError, match="a worker's own error"):
        compress_sequentially(dense, {"blocks.0.attn.qkv": 3, "blocks.0.attn.proj": 3}, images(2), features=broken)
    with pytest.raises(PlanError, match=r"blocks\.1\.mlp\.fc2: no calibration sample"):
        compress_sequentially(
            dense,
            {"blocks.0.attn.proj": 3, "blocks.1.mlp.fc2": 3},
            images(2),
            features=lambda model, item: model.blocks[0](model._pos_embed(model.patch_embed(item))),
        )
    assert not low_rank_layers(dense) and not dense.blocks[0].attn.proj._forward_hooks
    assert not dense.blocks[0].norm1._forward_pre_hooks


def test_states_of_a_layer_are_freed_before_the_next_one_runs():
    """What the compressed runs would have given with the dense weights is needed by nothing after it."""
    dense, items = vit(), images(3)
    names = [name for name, module in dense.named_modules() if isinstance(module, nn.Linear) and name != "head"]
    steps = Lockstep(dense, names, items, run_item, lambda on_stream: [])
    before: dict[int, ref[torch.Tensor]] = {}
    alive: list[bool] = []

    def look(module: nn.Module, args: tuple) -> None:
        run = steps._here.run
        if run.version == SMALL and run.item in before:
            alive.append(before[run.item]() is not None)

    for name in names:
        dense.get_submodule(name).register_forward_pre_hook(look)
    with torch.no_grad():
        for name, pairs in steps.stops():
            before |= {small.item: ref(small.y) for _, small in pairs}
            steps.replaced[name] = nn.Linear(pairs[0][0].x.shape[-1], pairs[0][0].y.shape[-1])
    assert len(alive) == len(items) * (len(names) - 1) and not any(alive)


def test_dense_layers_are_fitted_too():
    dense, items = vit(), images()
    names = ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    _, metrics = measure_metrics(dense, names, items)
    small = copy.deepcopy(dense)
    compress_sequentially(small, {names[0]: 4}, items, metrics, [names[1]], strength=1.0)
    layer = small.get_submodule(names[1])
    assert type(layer) is nn.Linear and not torch.equal(layer.weight, dense.get_submodule(names[1]).weight)
    alone = pela_vl.compress(copy.deepcopy(dense), 1.5, include=[names[0]], init="whitened", calibration=items)
    assert rank_plan(alone) and error(small, dense, items) < 1
    made = make_recipe(dense, 3, exclude=["head"], calibration=items, **OPTIONS)
    assert set(made.metrics) == set(made.plan) | set(made.dense)


def folds(samples: int, noise: float) -> tuple[tuple[_Regression, _Regression], torch.Tensor]:
    """Two halves of samples of t = D x + noise, and D."""
    torch.manual_seed(0)
    step = torch.randn(5, 20) / 20**0.5
    halves = _Regression(20, 5, "cpu"), _Regression(20, 5, "cpu")
    for half in halves:
        half.shift = halves[0].shift
        x = torch.randn(samples // 2, 20) + 3
        half.add(x, x @ step.T + noise * torch.randn(len(x), 5), torch.ones(len(x)), True)
    return halves, step


def test_the_strength_goes_by_held_out_batches():
    """All of D where it is certain, nothing of noise, and in between what is best on new samples."""
    assert held_out_strength(folds(2000, 0.01)[0], None, True) > 0.98
    assert held_out_strength(folds(60, 1000.0)[0], None, True) < 0.1
    halves, step = folds(120, 2.0)
    found = held_out_strength(halves, None, True)
    fitted = halves[0].plus(halves[1]).step(True).float()
    best = float((fitted * step).sum() / fitted.square().sum())  # of white inputs
    assert 0.2 < best < 0.9 and abs(found - best) < 0.15
    empty = halves[0], _Regression(20, 5, "cpu")
    assert held_out_strength(empty, None, True) == 0.0


def test_strength_chosen_for_each_layer_beats_none_of_it():
    dense, items = vit(), images(24)
    errors = []
    for strength in (0.0, None):
        options = OPTIONS | {"exclude": ["head"], "sequential": True, "strength": strength}
        errors.append(
            error(pela_vl.compress(copy.deepcopy(dense), 3, calibration=items[:16], **options), dense, items[16:])
        )
    assert errors[1] < errors[0]
