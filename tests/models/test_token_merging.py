"""Token merging against a literal restatement in loops, and against timm's own blocks where nothing is merged."""

import inspect
import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import Block
from tiny_albef import randomise, tiny_albef

from pela_vl.models.token_merging import (
    MergingBlocks,
    merge_plan,
    merge_tokens,
    merging_block,
    proportional_attention,
    reductions,
    unmerge_tokens,
)
from pela_vl.models.vit import build_image_encoder


def groups_by_hand(metric: torch.Tensor, reduction: int, protected: int) -> list[set[int]]:
    """Of one image, metric [N, D]: the sets of tokens that become one, by the paper's five steps."""
    count = len(metric)
    reduction = min(reduction, (count - protected) // 2)
    edges = []
    for a in range(0, count, 2):
        if a < protected or reduction <= 0:
            continue
        likeness = {
            b: float(torch.cosine_similarity(metric[a], metric[b], 0)) for b in range(1, count, 2) if b >= protected
        }
        partner = max(likeness, key=likeness.get)
        edges.append((likeness[partner], a, partner))
    edges.sort(reverse=True)
    groups = {i: {i} for i in range(count)}
    for _, a, b in edges[: max(reduction, 0)]:
        groups[b] |= groups.pop(a)
    return [groups[i] for i in sorted(groups)]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(3, 18), reduction=st.integers(0, 12), protected=st.integers(0, 2), seed=st.integers(0, 10**6))
def test_matching_and_merging_are_the_papers(count, reduction, protected, seed):
    generator = torch.Generator().manual_seed(seed)
    metric, x = (torch.randn(2, count, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    size = torch.randint(1, 5, (2, count), generator=generator).double()
    target = merge_plan(metric, reduction, protected)
    left = count - max(min(reduction, (count - protected) // 2), 0)
    merged, merged_size = merge_tokens(x, size, target, left)
    assert merged.shape == (2, left, 5)
    torch.testing.assert_close(merged_size.sum(1), size.sum(1))
    spread = unmerge_tokens(merged, target)
    for image in range(2):
        groups = groups_by_hand(metric[image], reduction, protected)
        assert len(groups) == left
        assert all({i} in groups for i in range(min(protected, count)))
        for group in groups:
            members = sorted(group)
            assert len(set(target[image, members].tolist())) == 1
            weights = size[image, members, None]
            mean = (x[image, members] * weights).sum(0) / weights.sum()
            for member in members:
                torch.testing.assert_close(spread[image, member], mean)
            assert merged_size[image, target[image, members[0]]] == weights.sum()


def test_proportional_attention_is_attention_over_every_copy():
    """A token that stands for three weighs as three equal tokens do."""
    torch.manual_seed(0)
    block = randomise(Block(24, 2, qkv_bias=True)).eval()
    x, copies = torch.randn(1, 5, 24), [1, 3, 1, 2, 1]
    size = torch.tensor([copies], dtype=torch.float32)
    out, _ = proportional_attention(block.attn, x, size)
    spread = x.repeat_interleave(torch.tensor(copies), dim=1)
    first = [sum(copies[:i]) for i in range(5)]
    torch.testing.assert_close(out, block.attn(spread)[:, first])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.3},
        {"qk_norm": True},
        {"scale_attn_norm": True},
        {"init_values": 0.3, "qk_norm": True, "scale_mlp_norm": True, "qkv_bias": True},
    ],
)
def test_a_block_with_sizes_of_one_is_timms(options):
    torch.manual_seed(0)
    block = randomise(Block(24, 2, **options)).eval()
    x = torch.randn(2, 7, 24)
    own, size, target = merging_block(block, x, torch.ones(2, 7), 0, 1)
    torch.testing.assert_close(own, block(x))
    assert target is None and size.shape == (2, 7)
    assert torch.equal(merging_block(block, x, None, 0, 1)[0], block(x))


@pytest.mark.skipif(
    "gated" not in inspect.signature(timm.layers.attention.Attention).parameters,
    reason="timm below 1.0.28 has no gated attention",
)
def test_gated_attention_too():
    torch.manual_seed(0)
    attention = randomise(timm.layers.attention.Attention(24, 2, gated=True)).eval()
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(proportional_attention(attention, x, None)[0], attention(x))


def test_a_block_with_layer_scale_by_hand():
    """Attention weighted by size, layer scale, merge by the keys' mean over heads, then the MLP with its layer scale."""
    torch.manual_seed(1)
    block, heads = randomise(Block(24, 2, init_values=0.5, qkv_bias=True)).double().eval(), 2
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    size = torch.tensor([[1, 2, 1, 4, 1, 1, 3, 1, 1]], dtype=torch.float64)
    out, new_size, _ = merging_block(block, x, size, 3, 1)
    query, key, value = block.attn.qkv(block.norm1(x))[0].detach().reshape(9, 3, heads, 12).unbind(1)
    mixed = torch.zeros(9, heads, 12, dtype=torch.float64)
    for h in range(heads):
        for i in range(9):
            scores = (key[:, h] @ query[i, h] / math.sqrt(12)).tolist()
            weights = [float(size[0, j]) * math.exp(scores[j]) for j in range(9)]
            mixed[i, h] = sum(w * value[j, h] for j, w in enumerate(weights)) / sum(weights)
    after = x[0] + block.ls1.gamma * block.attn.proj(mixed.flatten(1))
    rows = []
    for group in groups_by_hand(key.mean(1), 3, 1):
        weights = size[0, sorted(group), None]
        rows.append((after[sorted(group)] * weights).sum(0) / weights.sum())
    merged = torch.stack(rows)
    expected = merged + block.ls2.gamma * block.mlp(block.norm2(merged))
    order = [min(range(len(rows)), key=lambda k: float((out[0, i] - expected[k]).abs().max())) for i in range(6)]
    torch.testing.assert_close(out[0], expected[order])
    assert sorted(order) == list(range(6)) and new_size.sum() == size.sum()


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_no_merge_equals_the_unpatched_timm_model_exactly(name):
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, img_size=64, num_classes=5)).eval()
    names, images = list(model.state_dict()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain, blocks = model(images), model.blocks
        model.blocks = MergingBlocks(blocks, 0, model.num_prefix_tokens)
        assert list(model.state_dict()) == names
        assert torch.equal(model(images), plain)
        model.blocks = MergingBlocks(blocks, 2, model.num_prefix_tokens)
        assert not torch.equal(model(images), plain)
        seen = model.forward_features(images).shape[1]
    left = 16 + model.num_prefix_tokens
    for _ in range(12):
        left -= min(2, (left - model.num_prefix_tokens) // 2)
    assert seen == left


@pytest.mark.parametrize("checkpointing", [False, True])
def test_image_encoder_merges_as_the_patched_blocks_do(checkpointing):
    torch.manual_seed(0)
    ours = randomise(build_image_encoder(32, 8, 24, 3, 2, token_merging=[2, 0, 3]))
    ours.activation_checkpointing = checkpointing
    images = torch.randn(2, 3, 32, 32)
    states = ours.train()(images, keep_hidden=True)
    assert states.tokens.shape == (2, 12, 24)
    # hidden states stand at all 17 places, and every place holds a token of the last block's output
    assert [h.shape for h in states.hidden] == [(2, 17, 24)] * 4
    torch.testing.assert_close(ours.norm(states.hidden[-1])[:, 0], states.tokens[:, 0])
    for image in range(2):
        distances = torch.cdist(ours.norm(states.hidden[-1])[image], states.tokens[image])
        assert distances.min(1).values.max() < 1e-4 and set(distances.argmin(1).tolist()) == set(range(12))
    x = ours._pos_embed(ours.patch_embed(images))
    torch.testing.assert_close(ours.norm(MergingBlocks(ours.blocks, [2, 0, 3], 1)(x)), states.tokens)
    states.tokens.sum().backward()
    assert all(p.grad is not None for name, p in ours.named_parameters() if "norm" not in name)


def test_equal_tokens_merge_without_changing_anything():
    """Merging tokens that are equal is exact: proportional attention makes up for their number."""
    torch.manual_seed(0)
    model = randomise(build_image_encoder(32, 8, 24, 2, 2)).eval()
    with torch.no_grad():
        model.pos_embed[:, 1:] = model.pos_embed[:, 1:2]
    images = torch.ones(1, 3, 32, 32)
    plain = model(images).tokens
    model.set_token_merging(5)
    assert model(images).tokens.shape[1] == 7
    torch.testing.assert_close(model(images).tokens[:, 0], plain[:, 0])


def test_low_rank_and_merging_together():
    dense, small = tiny_albef(token_merging=1), tiny_albef(token_merging=1, low_rank=True)
    images = torch.randn(2, 3, 32, 32)
    for model in (dense, small):
        assert model.eval().visual_encoder(images).tokens.shape == (2, 3, 24)


def test_schedules():
    assert reductions(3, 2) == [3, 3] and reductions([1, 0], 2) == [1, 0]
    for wrong in ([1], [1, 2, 3], -1, [0, -1]):
        with pytest.raises(ValueError, match="token_merging wants"):
            reductions(wrong, 2)
