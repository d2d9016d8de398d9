"""Grounding against a literal restatement of the published evaluation, which works pair by pair and map by map."""

import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from grounding_data import build, load, tokenizer
from tiny_albef import tiny_albef
from tiny_runs import finish, start_processes

from pela_vl.base.distributed import World
from pela_vl.base.errors import UserError
from pela_vl.evaluation.attribution import choose_layer, heat_maps, prepare_images
from pela_vl.evaluation.localisation import accuracies, expression_heat, localise
from pela_vl.settings import GroundingSettings

SEEN = 25  # expressions that are compared
ONE = World(0, 1, torch.device("cpu"), launched=False)


@pytest.fixture(scope="module")
def lists(scenes, tmp_path_factory):
    return build(scenes, tmp_path_factory.mktemp("lists"))


def make_model(low_rank=False, **changes):
    more = {"vocab_size": tokenizer().vocab_size, "patch_size": 8, "text_heads": 3, "vision_heads": 4, "text_depth": 5}
    return tiny_albef(low_rank=low_rank, **(more | changes)).eval()


def split_heads(x, heads):
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def itm_attention(model, image, ids, mask, block_num):
    """The map [1, H, L, N] of a fusion layer over image tokens [1, N, D], with its gradient: softmax of every attention
    written out, the gradient of the one map by an ordinary backward. One pair at a time."""
    bert, kept = model.text_encoder, None
    x = bert.embeddings(ids)
    for i, layer in enumerate(bert.encoder.layer):
        for attention, context in ((layer.attention, x), (layer.crossattention, image)):
            if attention is None:
                continue
            own = attention.projections
            heads = own.heads
            q = split_heads(own.query(x), heads)
            k, v = (split_heads(linear(x if context is not image else image), heads) for linear in (own.key, own.value))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if context is not image:
                scores = scores + (1.0 - mask[:, None, None, :].float()) * -10000.0
            probabilities = scores.softmax(-1)
            if context is image and i == block_num:
                probabilities.retain_grad()
                kept = probabilities
            x = attention.output((probabilities @ v).transpose(1, 2).reshape(x.shape), x)
        x = layer.output(layer.intermediate(x), x)
    model.itm_head(x[:, 0])[:, 1].sum().backward()
    return kept


def published_itm_map(model, image, ids, mask, block_num):
    kept = itm_attention(model, model.visual_encoder(image).tokens.detach(), ids, mask, block_num)
    heads = kept.shape[1]
    grid = model.visual_encoder.patch_embed.grid_size
    mask = mask.view(mask.size(0), 1, -1, 1, 1)
    cams = kept.detach()[:, :, :, 1:].reshape(1, heads, -1, *grid) * mask
    grads = kept.grad[:, :, :, 1:].clamp(min=0).reshape(1, heads, -1, *grid) * mask
    return (cams * grads).mean(1).mean(1)[0]


def published_itc_map(model, image, ids, mask, block_num):
    vit, kept = model.visual_encoder, None
    x = vit._pos_embed(vit.patch_embed(image))
    for i, block in enumerate(vit.blocks):
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(1, x.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
        probabilities = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        if i == block_num:
            probabilities.retain_grad()
            kept = probabilities
        x = x + block.attn.proj((probabilities @ v).transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
    text = model.text_encoder.encode(ids, mask).tokens
    text = F.normalize(model.text_proj(text[:, 0]), dim=-1)
    sim = F.normalize(model.vision_proj(vit.norm(x)[:, 0]), dim=-1) @ text.t() / model.temp
    sim.diag().sum().backward()
    grid = vit.patch_embed.grid_size
    cam = kept.detach()[:, :, 0, 1:].reshape(1, -1, *grid)
    grad = kept.grad[:, :, 0, 1:].reshape(1, -1, *grid).clamp(0)
    return (cam * grad).mean(1)[0]


def published_box(heat, picture):
    """Ranks by slices from a best score of 0; None where the published loop would keep an earlier expression's box."""
    mask = heat.view(1, 1, *heat.shape)
    mask = F.interpolate(mask, size=(picture.height, picture.width), mode="bicubic").squeeze()
    max_score, best = 0, None
    for k, det in enumerate(picture.candidates.tolist()):
        score = (
            mask[int(det[1]) : int(det[1] + det[3]), int(det[0]) : int(det[0] + det[2])].sum()
            / (det[2] * det[3]) ** 0.5
        )
        if score > max_score:
            best, max_score = k, score
    return best


PUBLISHED_MAP = {"itm": published_itm_map, "itc": published_itc_map}


@pytest.mark.parametrize(
    "score, layer, low_rank",
    [("itm", None, False), ("itm", 2, True), ("itm", 3, False), ("itc", None, True), ("itc", 0, False)],
)
def test_boxes_are_the_published_ones(scenes, lists, score, layer, low_rank):
    model = make_model(low_rank)
    data = load(scenes, lists, model)
    settings = GroundingSettings(score=score, layer=layer, image_batch=3, pair_batch=5)
    found = localise(model, data, tokenizer(), settings, ONE, nullcontext)
    block, decided = choose_layer(model, score, layer), 0
    maps = expression_heat(model, data, tokenizer(), settings, list(range(6)), ONE.device, nullcontext)
    for k, expression in enumerate(data.expressions[:SEEN]):
        ids, mask = tokenizer().encode([expression.text], 40)
        picture = data.images[expression.image]
        heat = PUBLISHED_MAP[score](model, data[expression.image][None], ids, mask, block)
        if k < len(maps):
            whole = F.interpolate(heat[None, None], size=(picture.height, picture.width), mode="bicubic")[0, 0]
            torch.testing.assert_close(maps[k], whole, rtol=1e-3, atol=1e-6 * float(whole.abs().max()) + 1e-12)
        best = published_box(heat, picture)
        if best is not None:
            decided += 1
            assert found.chosen[k] == best
    assert decided > SEEN / 2
    assert len(set(found.chosen)) > 2


def test_heat_does_not_depend_on_the_batch_nor_on_padding():
    model, size = make_model(), 32
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    texts = ["a red circle", "the large blue square left of the green star", "circle"]
    ids, mask = tokenizer().encode(texts, 40)
    for score in ("itm", "itc"):
        layer = choose_layer(model, score, None)
        prepared = prepare_images(model, images, score, layer, nullcontext)
        index = torch.tensor([2, 0, 2])
        together = heat_maps(model, prepared, index, ids, mask, layer, nullcontext)
        assert together.shape == (3, 4, 4) and (together >= 0).all() and together.amax() > 0
        for k in range(3):
            n = int(mask[k].sum())
            own = (index[k : k + 1], ids[k : k + 1, :n], mask[k : k + 1, :n])
            alone = heat_maps(model, prepared, *own, layer, nullcontext)[0]
            torch.testing.assert_close(together[k], alone, rtol=1e-4, atol=1e-6 * float(alone.max()))


def test_the_mode_is_left_as_found_and_no_gradient_is_kept(scenes, lists):
    model = make_model(dropout=0.5).train()
    data = load(scenes, lists, model)
    first, second = (localise(model, data, tokenizer(), GroundingSettings(), ONE, nullcontext) for _ in range(2))
    assert first.chosen == second.chosen and model.training
    assert all(p.grad is None for p in model.parameters())


def test_default_layers_are_the_published_ones():
    model = make_model(text_depth=7, vision_depth=3)  # fusion layers 2 to 6
    assert choose_layer(model, "itm", None) == 4 and choose_layer(model, "itc", None) == 2
    for score, layer in (("itm", 1), ("itm", 7), ("itc", 3), ("itc", -1)):
        with pytest.raises(UserError, match=f"layer {layer}: for the {score.upper()} score"):
            choose_layer(model, score, layer)


def test_pictures_without_candidates_count_as_wrong(scenes, lists, tmp_path):
    boxes = json.loads((lists / "refs_boxes.json").read_text())
    first = load(scenes, lists).expressions[0]
    boxes["images"][str(boxes["refs"][str(first.ref_id)]["image_id"])]["boxes"] = []
    for name in ("refs_val.json", "refs_test.json"):
        (tmp_path / name).write_text((lists / name).read_text())
    (tmp_path / "refs_boxes.json").write_text(json.dumps(boxes))
    model = make_model()
    data = load(scenes, tmp_path, model)
    records = localise(model, data, tokenizer(), GroundingSettings(), ONE, nullcontext).predictions(data)
    assert records[0]["box"] is None and not records[0]["correct"]
    assert all(record["box"] is not None for record in records if record["image"] != records[0]["image"])


def test_predictions_have_every_expression_once(scenes, lists):
    model = make_model()
    data = load(scenes, lists, model)
    records = localise(model, data, tokenizer(), GroundingSettings(), ONE, nullcontext).predictions(data)
    written = [e for name in ("val", "test") for e in json.loads((lists / f"refs_{name}.json").read_text())]
    assert [(r["ref_id"], r["sent_id"], r["text"]) for r in records] == [
        (e["ref_id"], e["sent_id"], e["text"]) for e in written
    ]
    metrics = accuracies(records)
    assert list(metrics) == ["val", "testA", "testB", "mean"]
    hits = [r["correct"] for r in records if r["split"] == "testB"]
    assert metrics["testB"] == pytest.approx(100 * sum(hits) / len(hits))


WORKER = """
import json, sys
from contextlib import nullcontext
from pathlib import Path
from grounding_data import load, tokenizer
from test_localisation import make_model
from pela_vl.base.distributed import start, stop
from pela_vl.evaluation.localisation import localise
from pela_vl.settings import GroundingSettings
scenes, lists, output = map(Path, sys.argv[1:])
world = start("cpu")
model = make_model()
data = load(scenes, lists, model)
found = localise(model, data, tokenizer(), GroundingSettings(image_batch=4), world, nullcontext)
(output / f"{world.process}.json").write_text(json.dumps(found.predictions(data)))
stop()
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(scenes, lists, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    finish(start_processes([str(tmp_path / "worker.py"), str(scenes), str(lists), str(tmp_path)], 2))
    model = make_model()
    data = load(scenes, lists, model)
    own = localise(model, data, tokenizer(), GroundingSettings(image_batch=4), ONE, nullcontext).predictions(data)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == own
