"""Every key of every published key set gets its place; whatever does not fit is refused by name."""

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from published_files import (
    DEPTH,
    DIM,
    FUSION,
    JOINT,
    MLP,
    PATCH,
    POSITIONS,
    VOCAB,
    bert,
    fill,
    mlm,
    published_shapes,
    vit,
)

from pela_vl.base.errors import UserError
from pela_vl.checkpoints import convert_checkpoint, recognise
from pela_vl.lowrank import apply_plan, plan_ranks, rank_plan

STATE_DICTS = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "state_dicts"
KINDS = {
    "pretrain": "pretrain",
    "pretrain_lowrank": "pretrain",
    "retrieval": "retrieval",
    "ve": "entailment",
    "vqa": "vqa",
}
QUEUES = {"image_queue", "text_queue", "idx_queue", "queue_ptr"}


def albef(image_size: int, mlm: bool) -> torch.nn.Module:
    from pela_vl.models.albef.albef import build_albef
    from pela_vl.models.albef.config import AlbefConfig

    config = AlbefConfig(
        image_size=image_size,
        patch_size=PATCH,
        vision_dim=DIM,
        vision_depth=DEPTH,
        vision_heads=2,
        vocab_size=VOCAB,
        text_dim=DIM,
        text_depth=DEPTH,
        text_heads=2,
        text_mlp_dim=MLP,
        fusion_layer=FUSION,
        joint_dim=JOINT,
        max_positions=POSITIONS,
    )
    return build_albef(config, mlm=mlm)


@pytest.mark.parametrize("file", KINDS)
def test_the_small_files_have_the_published_keys(file):
    path = STATE_DICTS / f"{file}.json"
    if not path.exists():
        pytest.skip("the published key lists (../shared/reference/state_dicts) are not here")
    published, small = json.loads(path.read_text()), published_shapes(file)
    assert set(small) == set(published)
    assert all(len(small[name]) == len(published[name]["shape"]) for name in small)


@pytest.mark.parametrize("file", KINDS)
def test_every_key_is_mapped_or_ignored_by_name(file):
    state = fill(published_shapes(file))
    converted = convert_checkpoint(state)
    assert converted.kind == recognise(state) == KINDS[file]
    ignored = {note.partition(":")[0] for note in converted.notes if ": ignored (" in note}
    assert ignored <= set(state)
    assert all(name.endswith(("position_ids", "decoder.weight", "decoder.bias")) for name in ignored)
    places = [*converted.online.values(), *converted.momentum.values(), *converted.queues.values()]
    assert len(places) + len(ignored) == len(state)
    assert {value.data_ptr() for value in places} == {v.data_ptr() for k, v in state.items() if k not in ignored}
    assert set(converted.queues) == QUEUES & set(state)
    assert converted.image_size == (16 if file.startswith("pretrain") else 24) and converted.patch_size == PATCH


@pytest.mark.parametrize("file", KINDS)
def test_momentum_pairs_by_online_name(file):
    state = fill(published_shapes(file))
    converted = convert_checkpoint(state)
    assert set(converted.momentum) == {name for name in converted.online if name != "temp" and "itm_head" not in name}
    qkv = "visual_encoder.blocks.3.attn.qkv"
    ours, theirs = (f"{qkv}.up.weight", f"{qkv}.1.weight") if "lowrank" in file else (f"{qkv}.weight",) * 2
    assert converted.online[ours] is state[theirs]
    assert converted.momentum[ours] is state[theirs.replace("encoder.", "encoder_m.")]


def test_ranks_come_from_the_factors():
    converted = convert_checkpoint(fill(published_shapes("pretrain_lowrank")))
    assert len(converted.ranks) == 4 * DEPTH + 6 * DEPTH + 4 * FUSION
    assert converted.ranks["visual_encoder.blocks.0.attn.qkv"] == 6
    assert converted.ranks["text_encoder.encoder.layer.7.crossattention.self.key"] == 4
    for file in ("pretrain", "retrieval", "ve", "vqa"):  # cls_head.0 and cls_head.2 are no factors
        assert convert_checkpoint(fill(published_shapes(file))).ranks == {}


@pytest.mark.parametrize("file", ["pretrain", "pretrain_lowrank", "retrieval"])
def test_our_model_takes_it_strictly(file):
    state = fill(published_shapes(file))
    converted = convert_checkpoint(state)
    model = albef(converted.image_size, mlm=file != "retrieval")
    if converted.ranks:
        plan = plan_ranks(model, 3, exclude=["vision_proj", "text_proj", "itm_head", "mlm_head"])
        assert plan == converted.ranks
        apply_plan(model, converted.ranks, init="empty")
    model.load_state_dict(converted.online, strict=True)
    assert rank_plan(model) == converted.ranks


@pytest.mark.parametrize("bert_prefix", [True, False])
def test_fine_tuned_retrieval_without_momentum(bert_prefix):
    """Published fine-tuned files drop the twin; some keep the `bert.` of pre-training in their names."""
    state = {name: value for name, value in fill(published_shapes("retrieval")).items() if "_m." not in name}
    if bert_prefix:
        state = {name.replace("text_encoder.", "text_encoder.bert."): value for name, value in state.items()}
    for saved in (state, {"model": state, "epoch": 3}):  # the grounding file has no top key
        converted = convert_checkpoint(saved)
        assert converted.kind == "retrieval" and converted.momentum == {}
        assert any("EMA model: absent" in note for note in converted.notes)
        assert any(note.startswith("epoch: ignored") for note in converted.notes) == ("epoch" in saved)
        albef(24, mlm=False).load_state_dict(converted.online, strict=True)


def bert_file(old_names: bool, prefix: str = "bert.", head: bool = True) -> dict[str, torch.Tensor]:
    shapes = bert(prefix, fusion=DEPTH) | ({} if not head else mlm("cls."))
    shapes |= {f"{prefix}pooler.dense.weight": (DIM, DIM), f"{prefix}pooler.dense.bias": (DIM,)}
    if head:
        shapes |= {"cls.seq_relationship.weight": (2, DIM), "cls.seq_relationship.bias": (2,)}
    state = fill(shapes)
    if old_names:
        for name in [name for name in state if "LayerNorm." in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            state[old] = state.pop(name)
        del state["cls.predictions.decoder.weight"], state["cls.predictions.decoder.bias"]
        del state["bert.embeddings.position_ids"]
    return state


@pytest.mark.parametrize("state", [bert_file(True), bert_file(False), bert_file(False, "", head=False)])
def test_bert(state):
    converted = convert_checkpoint(state)
    assert converted.kind == "bert" and converted.image_size is None and not converted.momentum
    missing = set(albef(16, mlm=True).state_dict()) - set(converted.online)
    assert not set(converted.online) - set(albef(16, mlm=True).state_dict())
    # What is missing is exactly what the file's kind is said not to hold.
    said = {name for name in albef(16, mlm=True).state_dict() if any(fnmatchcase(name, p) for p in converted.absent)}
    assert missing == said
    assert any("*.crossattention.*: to be initialised" in note for note in converted.notes)
    scale = converted.online["text_encoder.encoder.layer.2.output.LayerNorm.weight"]
    names = [name for name in state if name.endswith(("2.output.LayerNorm.weight", "2.output.LayerNorm.gamma"))]
    assert any(scale is state[name] for name in names)


def test_deit():
    state = fill(vit("", 14) | {"head.weight": (10, DIM), "head.bias": (10,)})
    converted = convert_checkpoint({"model": state})
    assert converted.kind == "deit" and converted.image_size == 14 * PATCH
    assert {note for note in converted.notes if "ignored" in note} == {
        f"head.{leaf}: ignored (the ImageNet classifier is not used)" for leaf in ("weight", "bias")
    }
    model = albef(14 * PATCH, mlm=True)
    model.visual_encoder.load_state_dict(
        {name.removeprefix("visual_encoder."): value for name, value in converted.online.items()}, strict=True
    )
    with pytest.raises(UserError, match="dist_token"):
        convert_checkpoint(state | {"dist_token": torch.zeros(1, 1, DIM)})


def test_leftover_keys_are_all_listed():
    state = fill(published_shapes("ve")) | {"cls_head.7.weight": torch.zeros(1), "text_encoder.odd": torch.zeros(1)}
    with pytest.raises(UserError, match=r"2 keys .* cls_head\.7\.weight, text_encoder\.odd$"):
        convert_checkpoint(state)
    state = fill(published_shapes("pretrain_lowrank"))
    state["visual_encoder.blocks.0.attn.qkv.0.bias"] = torch.zeros(6)  # the first factor has no bias
    with pytest.raises(UserError, match=r"attn\.qkv\.0\.bias"):
        convert_checkpoint(state)


@pytest.mark.parametrize("twin", ["", "_m"])
@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_untied_decoder_is_refused(twin, leaf):
    state = fill(published_shapes("pretrain"))
    name = f"text_encoder{twin}.cls.predictions.decoder.{leaf}"
    state[name] = state[name] + 1
    with pytest.raises(UserError, match=f"decoder.{leaf} differs from"):
        convert_checkpoint(state)


def test_momentum_that_does_not_pair_is_refused():
    state = fill(published_shapes("retrieval"))
    gone = dict(state)
    del gone["vision_proj_m.bias"]
    with pytest.raises(UserError, match=r"one side only: vision_proj\.bias"):
        convert_checkpoint(gone)
    with pytest.raises(UserError, match=r"differ in shape: vision_proj\.bias"):
        convert_checkpoint(state | {"vision_proj_m.bias": torch.zeros(JOINT + 1)})


def test_factors_that_do_not_fit_are_refused():
    state = fill(published_shapes("pretrain_lowrank"))
    layer = "visual_encoder.blocks.0.attn.proj"
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.proj: factors .* do not fit"):
        convert_checkpoint(state | {f"{layer}.0.weight": torch.zeros(5, DIM)})
    half = dict(state)
    del half[f"{layer}.0.weight"]
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.proj: expected two factors"):
        convert_checkpoint(half)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.proj: expected two factors"):
        convert_checkpoint(state | {f"{layer}.weight": torch.zeros(DIM, DIM)})


def test_a_parameter_under_two_names_is_refused():
    state = fill(published_shapes("retrieval"))
    twice = "text_encoder.bert.embeddings.LayerNorm.bias"
    with pytest.raises(UserError, match=rf"twice: {twice}"):
        convert_checkpoint(state | {twice: torch.zeros(DIM)})


@pytest.mark.parametrize("state", [{"conv1.weight": torch.zeros(3)}, {}, {"model": {}}, {"a": 3}, {"model": [1]}])
def test_unknown_content(state):
    with pytest.raises(UserError, match="the given state"):
        convert_checkpoint(state)


def test_positions_of_no_square_grid():
    with pytest.raises(UserError, match=r"not \[1, 1 \+ g\*g, D\]"):
        convert_checkpoint(fill(vit("", 3) | {"pos_embed": (1, 12, DIM)}))
