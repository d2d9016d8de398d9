"""Block refinement: it lowers the error of the features on new samples, and never a block's own on held-out ones."""

import copy

import pytest
import torch
from test_sequential import OPTIONS, error, images, swin, vit
from tiny_albef import tiny_albef, tiny_batch
from torch import nn

import pela_vl
from pela_vl.lowrank import PlanError, low_rank_layers
from pela_vl.recovery.refine import _calls, _dense_targets, blocks_of, refine_blocks


def compressed(dense: nn.Module, items: list, **options) -> nn.Module:
    return pela_vl.compress(
        copy.deepcopy(dense), 2, exclude=["head*"], calibration=items, sequential=True, **OPTIONS, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("build", [vit, swin])
def test_new_samples_gain(build):
    dense, items = build(), images(16)
    known, fresh = items[:10], items[10:]
    start = pela_vl.compress(copy.deepcopy(dense), 3, exclude=["head*"], init="whitened", calibration=known)
    small, seen = copy.deepcopy(start), []
    reports = refine_blocks(small, dense, known, 60, 1e-3, progress=lambda *what: seen.append(what))
    assert seen == [(i + 1, len(reports), "refinement") for i in range(len(reports))]
    assert any(report.after < report.before for report in reports)
    assert all(report.after <= report.before for report in reports)
    assert error(small, dense, fresh) < 0.9 * error(start, dense, fresh)
    changed = {n for n, p in small.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    assert changed == {name for report in reports for name in report.parameters}
    assert all(".up." in name or ".down." in name or "norm" in name for name in changed)
    assert any("norm" in name for name in changed)


def test_as_an_option_of_compress():
    dense, items = vit(), images(6)
    small = compressed(dense, items)
    refine_blocks(small, dense, items, 5)
    at_once = compressed(dense, items, refine_steps=5)
    torch.testing.assert_close(at_once.state_dict(), small.state_dict())
    with pytest.raises(PlanError, match="refine_steps needs calibration"):
        pela_vl.compress(vit(), 2, refine_steps=5)


def test_blocks_that_keep_keys_and_values():
    """GPT-2's blocks add to a cache whenever they run, which a block that is run again and again must not."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_positions=32)
    model, ids = transformers.GPT2Model(config), [torch.randint(0, 50, (4, 7)) for _ in range(4)]
    pela_vl.compress(model, 2, init="gauss_newton", calibration=ids, refine_steps=3)
    assert model.config.use_cache and model(ids[0]).past_key_values is not None


def test_a_rate_that_does_harm_changes_nothing():
    dense, items = vit(), images(6)
    small = compressed(dense, items)
    before = copy.deepcopy(small.state_dict())
    reports = refine_blocks(small, dense, items, 5, 3.0)
    assert not any(report.parameters for report in reports)
    torch.testing.assert_close(small.state_dict(), before, rtol=0, atol=0)


def test_a_block_is_given_what_the_blocks_before_it_make():
    """Kept outputs in place of these blocks: the very inputs of a whole run."""
    dense, items = vit(), images(2)
    small = compressed(dense, items)
    blocks = blocks_of(small, list(low_rank_layers(small)))
    targets, roots = _dense_targets(dense, list(blocks), lambda model, item: model(item), items, 0)
    seen = []
    handles = [block.register_forward_hook(lambda m, a, o: seen.append((a[0], o))) for block in blocks.values()]
    with torch.no_grad():
        small(items[1])
    for handle in handles:
        handle.remove()
    kept = {"blocks.0": seen[0][1], "blocks.1": seen[1][1]}
    calls = _calls(small, blocks, "blocks.2", lambda model, item: model(item), items[1], kept, targets[1])
    assert len(calls) == 1 and torch.equal(calls[0].args[0], seen[2][0])
    assert "forward" not in vars(small.blocks[0])
    assert roots.keys() == blocks.keys()
    with torch.no_grad():
        torch.testing.assert_close(calls[0].target.output, dense.blocks(dense._pos_embed(dense.patch_embed(items[1]))))


def test_modes_and_gradients_are_given_back():
    dense, items = vit(), images(4)
    small = compressed(dense, items).train()
    small.blocks[0].norm1.weight.requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    refine_blocks(small, dense, items, 2)
    assert small.training and not dense.training
    assert {name: parameter.requires_grad for name, parameter in small.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in [*small.parameters(), *dense.parameters()])


def test_albef_with_cross_attention():
    dense = tiny_albef(dropout=0.0).eval()

    def item(seed):
        batch = tiny_batch(6, seed)

        def run(model):
            image, text = model.visual_encoder(batch.images).tokens, model.text_encoder.encode(batch.ids, batch.mask)
            keys_values = model.text_encoder.image_keys_values(image)
            fused = model.text_encoder.fuse(text.tokens, batch.mask, keys_values).tokens
            return [model.image_feature(image), model.text_feature(text.tokens), model.itm_head(fused[:, 0])]

        return run

    items = [item(seed) for seed in range(6)]
    exclude = ["vision_proj", "text_proj", "itm_head", "mlm_head"]
    small = pela_vl.compress(copy.deepcopy(dense), 2, exclude=exclude, calibration=items, **OPTIONS)
    reports = refine_blocks(small, dense, items, 10, 1e-3)
    names = [report.name for report in reports]
    assert any("visual" in name for name in names) and any("text_encoder" in name for name in names)
    assert any(report.parameters for report in reports)


def test_refusals():
    dense = vit()
    small = compressed(dense, images(3))
    with pytest.raises(PlanError, match="two batches"):
        refine_blocks(small, dense, images(1), 5)
    plain = nn.Linear(8, 8)
    with pytest.raises(PlanError, match="recover"):
        refine_blocks(plain, copy.deepcopy(plain), images(3), 5)
