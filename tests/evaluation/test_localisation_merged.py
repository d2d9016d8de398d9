"""Heat maps where the image encoder merges tokens, against a restatement that walks over sets of patches, one image at a time."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from grounding_data import build, load, tokenizer
from test_localisation import ONE, itm_attention, make_model, published_box

from pela_vl.evaluation.attribution import choose_layer, heat_maps, prepare_images
from pela_vl.evaluation.localisation import localise
from pela_vl.models.albef.attention_maps import trace_matching
from pela_vl.settings import GroundingSettings

SCHEDULE = [3, 0, 4]  # of 17 tokens; the block between merges nothing but must count sizes


@pytest.fixture(scope="module")
def lists(scenes, tmp_path_factory):
    return build(scenes, tmp_path_factory.mktemp("lists"))


def merging_model(schedule=SCHEDULE, **changes):
    return make_model(vision_depth=3, token_merging=schedule, **changes)


def merge_by_hand(x, sets, keys, reduction):
    """x [M, D] of the patches `sets`: the most alike of an even and an odd place become one, `reduction` times, by a mean in
    which every patch counts once. The class token at place 0 stays alone."""
    best = []
    for a in range(2, len(x), 2):
        alike = {b: float(F.cosine_similarity(keys[a], keys[b], 0)) for b in range(1, len(x), 2)}
        partner = max(alike, key=alike.get)
        best.append((alike[partner], a, partner))
    sums = [len(places) * row for places, row in zip(sets, x, strict=True)]
    sets = [set(places) for places in sets]
    gone = sorted(best, reverse=True)[:reduction]
    for _, a, b in gone:
        sums[b] = sums[b] + sums[a]
        sets[b] |= sets[a]
    stay = [i for i in range(len(x)) if i not in {a for _, a, _ in gone}]
    return torch.stack([sums[i] / len(sets[i]) for i in stay]), [sets[i] for i in stay]


def vision_by_hand(vit, image, kept_block=None):
    """Final tokens [M, D], the patches of each, and of `kept_block` the attention [H, M, M] and the patches that it saw."""
    x = vit._pos_embed(vit.patch_embed(image))[0]
    sets, kept = [{place} for place in range(len(x))], None
    for number, block in enumerate(vit.blocks):
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        weights = scores.exp() * torch.tensor([float(len(places)) for places in sets])
        probabilities = weights / weights.sum(-1, keepdim=True)
        if number == kept_block:
            probabilities.retain_grad()
            kept = probabilities, sets
        x = x + block.attn.proj((probabilities @ v).transpose(0, 1).reshape(x.shape))
        if SCHEDULE[number]:
            x, sets = merge_by_hand(x, sets, k.mean(0).detach(), SCHEDULE[number])
        x = x + block.mlp(block.norm2(x))
    return vit.norm(x), sets, kept


def itm_by_hand(model, image, ids, mask, layer):
    """Fusion attends to a merged token as to any other: each of its patches has that attention."""
    tokens, sets, _ = vision_by_hand(model.visual_encoder, image)
    kept = itm_attention(model, tokens.detach()[None], ids, mask, layer)
    cam = (kept.detach() * kept.grad.clamp(min=0))[0].mean(0).mean(0)
    return over_patches(cam, sets, model, shared=False)


def itc_by_hand(model, image, ids, mask, block):
    """The ViT attends to a merged token as often as it has patches: they share that attention."""
    tokens, _, (kept, sets) = vision_by_hand(model.visual_encoder, image, block)
    text = F.normalize(model.text_proj(model.text_encoder.encode(ids, mask).tokens[:, 0]), dim=-1)
    (F.normalize(model.vision_proj(tokens[:1]), dim=-1) @ text.t() / model.temp).sum().backward()
    cam = (kept.detach() * kept.grad.clamp(min=0))[:, 0].mean(0)
    return over_patches(cam, sets, model, shared=True)


def over_patches(cam, sets, model, shared):
    heat = torch.zeros(1 + 16)
    for value, places in zip(cam, sets, strict=True):
        for place in places:
            heat[place] = value / len(places) if shared else value
    return heat[1:].view(model.visual_encoder.patch_embed.grid_size)


BY_HAND = {"itm": itm_by_hand, "itc": itc_by_hand}


@pytest.mark.parametrize(
    "score, layer, low_rank",
    [("itm", None, False), ("itm", 2, True), ("itc", None, True), ("itc", 1, False), ("itc", 0, False)],
)
def test_heat_and_boxes_by_hand(scenes, lists, score, layer, low_rank):
    model = merging_model(low_rank=low_rank)
    data = load(scenes, lists, model)
    found = localise(model, data, tokenizer(), GroundingSettings(score=score, layer=layer), ONE, nullcontext)
    layer, decided = choose_layer(model, score, layer), 0
    prepared = prepare_images(model, torch.stack([data[0], data[1]]), score, layer, nullcontext)
    for k, expression in enumerate(data.expressions[:8]):
        ids, mask = tokenizer().encode([expression.text], 40)
        by_hand = BY_HAND[score](model, data[expression.image][None], ids, mask, layer)
        if expression.image < 2:
            ours = heat_maps(model, prepared, torch.tensor([expression.image]), ids, mask, layer, nullcontext)[0]
            torch.testing.assert_close(ours, by_hand, rtol=1e-3, atol=1e-5 * float(by_hand.max()))
            if (score, layer) != ("itc", 0):  # which is before any merge
                assert len(set(ours.flatten().tolist())) < 16  # some patches are one token
        best = published_box(by_hand, data.images[expression.image])
        if best is not None:
            decided += 1
            assert found.chosen[k] == best
    assert decided > 4


def two_kinds(schedule):
    """A model that sees no positions, and an image of two kinds of patches in a pattern: equal patches are equal tokens."""
    model = merging_model(schedule)
    with torch.no_grad():
        model.visual_encoder.pos_embed[:, 1:] = model.visual_encoder.pos_embed[:, 1:2]
    pattern = torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0]])
    return model, pattern.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(1, 3, 32, 32)


def test_merging_equal_patches_changes_no_heat_of_itc():
    """What is shared by size is what each patch had: at every block, merged before it or not."""
    (plain, image), (merged, _) = two_kinds(0), two_kinds([3, 4, 0])
    ids, mask = tokenizer().encode(["a red circle"], 40)
    first = torch.zeros(1, dtype=torch.int64)
    for block in range(3):
        heats = []
        for model in (plain, merged):
            prepared = prepare_images(model, image, "itc", block, nullcontext)
            heats.append(heat_maps(model, prepared, first, ids, mask, block, nullcontext))
        assert heats[0].max() > 0
        torch.testing.assert_close(heats[1], heats[0], rtol=1e-3, atol=1e-6 * float(heats[0].max()))


def test_merging_equal_patches_changes_no_ratio_of_cross_attention():
    """In the first fusion layer, whose texts have not seen the image, patches keep their attention relative to one another."""
    (plain, image), (merged, _) = two_kinds(0), two_kinds([3, 4, 0])
    ids, mask = tokenizer().encode(["a red circle"], 40)
    maps, layer = [], plain.text_encoder.fusion_layer
    with torch.no_grad():
        for model in (plain, merged):
            prepared = prepare_images(model, image, "itm", layer, nullcontext)
            tokens = model.text_encoder.encode(ids, mask).tokens
            attention, _ = trace_matching(model, tokens, mask, prepared.keys_values, layer)
            if prepared.source is not None:
                attention = attention[..., prepared.source[0]]  # every patch has its token's
            maps.append(attention / attention.sum(-1, keepdim=True))
    torch.testing.assert_close(maps[1], maps[0])


@pytest.mark.parametrize("score", ["itm", "itc"])
def test_no_merging_is_the_plain_model_bit_for_bit(score):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids, mask = tokenizer().encode(["a red circle", "the star left of it"], 40)
    never, off = make_model(vision_depth=3), merging_model()
    on = merging_model()
    off.visual_encoder.set_token_merging(0)
    layer, index, heats = choose_layer(never, score, None), torch.tensor([1, 0]), []
    for model in (never, off, on):
        prepared = prepare_images(model, images, score, layer, nullcontext)
        heats.append(heat_maps(model, prepared, index, ids, mask, layer, nullcontext))
    assert torch.equal(heats[0], heats[1]) and not torch.equal(heats[0], heats[2])


def test_pictures_in_parts_keep_their_places():
    model, images = merging_model(), torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = model.visual_encoder(images)
    model.visual_encoder.images_at_a_time = 2
    parts = model.visual_encoder(images)
    assert torch.equal(parts.source, whole.source)
    torch.testing.assert_close(parts.tokens, whole.tokens)
